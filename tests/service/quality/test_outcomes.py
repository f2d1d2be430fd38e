"""The outcome of a forecast, read from a video's rows."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest

from model.engagement.bins import EDGES_US, HOUR_US, bin_index
from model.engagement.history import History, Series
from model.engagement.video import Video
from service.quality.label import Label
from service.quality.outcomes import outcome
from service.store.snapshot import Snapshot
from tests.service.running import T0

P0 = T0 * 1_000_000
S = 1_000_000
H = HOUR_US
DAY = 24 * H


def label(at_us: int, horizon_us: int, count: int = 0, metric: str = "view") -> Label:
    return Label("v", "m1", P0, at_us, horizon_us, 0, 0, metric, {"view": count}, count, (0,) * 7, (1,) * 6, 0)


def snapshot(mode: Any, cells: list[tuple[int, int]], newest_us: int, kind: str = "view") -> Snapshot:
    """Cells are (age in us, value)."""
    by_bin: dict[int, int] = {}
    for age_us, value in cells:
        index = int(bin_index(age_us))
        by_bin[index] = max(by_bin.get(index, 0), value) if mode == "counters" else by_bin.get(index, 0) + value
    bins = np.array(sorted(by_bin), np.int64)
    series = Series(mode, bins, np.array([by_bin[b] for b in bins.tolist()], np.int64))
    return Snapshot(1, Video("v", P0), History({kind: series}), newest_us)


def test_no_events_means_no_growth() -> None:
    seen = snapshot("events", [(10 * S, 3), (H, 4)], P0 + H)
    assert outcome(label(P0 + 2 * H, 3 * H, 7), seen, P0 + 6 * H, False) == 7
    assert outcome(label(P0 + 10 * S, 20 * S, 3), seen, P0 + 6 * H, False) == 3


def test_count_within_a_bin_is_interpolated() -> None:
    """At an age of a day a bin is 22 minutes wide; the forecast was made in it, at 100, with a horizon of 10 minutes."""
    start = int(EDGES_US[bin_index(DAY)])
    seen = snapshot("events", [(H, 90), (start + 60 * S, 70)], P0 + start + 60 * S)
    made = label(P0 + start + 120 * S, 600 * S, 100)
    assert outcome(made, seen, made.target_us, False) == 160
    assert outcome(made, seen, made.target_us + 60 * S, False) == pytest.approx(100 + 60 * 600 / 660)
    # Days later it is unknown which part of the bin's 70 came within those 10 minutes.
    assert outcome(made, seen, made.target_us + DAY, False) == "never"


def test_counters_are_read_at_snapshots() -> None:
    made = label(P0 + 10 * H, 10 * H, 500)
    early, near, late = (P0 + 17 * H, 700), (P0 + 19 * H + H // 2, 800), (P0 + 21 * H - H // 4, 1000)

    def at(*points: tuple[int, int]) -> float | str:
        cells = [(5 * H, 500), *((t - P0, value) for t, value in points)]
        return outcome(made, snapshot("counters", cells, max(P0 + 5 * H, *(t for t, _ in points))), P0 + 22 * H, False)

    assert at(early) == "later"
    assert at(near) == 800
    assert 700 < cast(float, at(early, late)) < 1000
    assert 800 < cast(float, at(near, late)) < 1000
    assert at(early, (P0 + 30 * H, 2000)) == "never"


def test_total_adds_events_and_counters_and_a_video_without_rows_counts_like_the_others() -> None:
    likes = Series("events", bin_index(np.array([H])), np.array([5]))
    views = snapshot("counters", [(H, 50), (19 * H, 70)], P0 + 19 * H + 3)
    both = Snapshot(1, views.video, History({**views.history.series, "like": likes}), views.newest_us)
    made = label(P0 + 9 * H, 10 * H, 50, "total")
    assert outcome(made, both, P0 + 20 * H, False) == pytest.approx(75)
    empty = Snapshot(1, views.video, History(), None)
    assert [outcome(made, empty, P0 + 20 * H, silence) for silence in (True, False)] == [0, "never"]


@pytest.mark.parametrize("mode", ["events", "counters"])
def test_last_bin_has_no_end_so_a_reading_of_today_is_no_outcome_of_the_past(mode: str) -> None:
    """The video is older than the start of the last bin: a reading of today is no outcome of two years ago."""
    year = 365 * DAY
    seen = snapshot(mode, [(18 * year, 1000), (22 * year, 5000)], P0 + 22 * year)
    made = label(P0 + 19 * year + year // 2, 30 * DAY, 1000)
    found = outcome(made, seen, P0 + 22 * year, False)
    assert found in ("never", *range(1100))
