"""A bundle can be opened while a service uses its bank."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from index_builder.bundles.forecast import forecast
from index_builder.bundles.open_bundle import open_with_growing_bank
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.evaluate import evaluate
from model.engagement.bins import HOUR_US
from model.engagement.video import Video
from model.forecaster import Forecaster
from tests.conftest import Mini

pytestmark = pytest.mark.slow


def _queries(chosen: Sequence[Video], path: Path) -> Path:
    now = pa.array([v.published_us + 6 * HOUR_US for v in chosen], pa.timestamp("us", "UTC"))
    later = pa.array([v.published_us + 30 * HOUR_US for v in chosen], pa.timestamp("us", "UTC"))
    ids = [v.video_id for v in chosen]
    table = {"video_id": ids, "metric": ["view"] * len(ids), "now": now, "target_time": later}
    pq.write_table(pa.table(table), path)
    return path


def test_forecasts_are_the_same_while_another_process_has_the_bank_open(mini: Mini, tmp_path: Path) -> None:
    data = load_dataset(mini.data)
    chosen = [v for v in data.videos if v.published_us < mini.as_of_us][-20:]
    queries = _queries(chosen, tmp_path / "queries.parquet")
    forecast(mini.bundle, mini.data, queries, tmp_path / "free.parquet")
    holder = Forecaster.load(mini.bundle)
    try:
        forecast(mini.bundle, mini.data, queries, tmp_path / "held.parquet")
    finally:
        holder.close()
    free = pq.read_table(tmp_path / "free.parquet")
    assert free == pq.read_table(tmp_path / "held.parquet")
    assert free.num_rows == 20
    assert all(a <= b <= c for a, b, c in zip(*(free[f"q{q}"].to_pylist() for q in (0.1, 0.5, 0.9)), strict=True))


def test_a_growing_bank_learns_from_later_videos_but_never_from_later_rows(mini: Mini, tmp_path: Path) -> None:
    chosen = [v for v in load_dataset(mini.data).videos if v.published_us > mini.as_of_us][-12:]
    queries = _queries(chosen, tmp_path / "queries.parquet")
    newest_us = max(v.published_us for v in chosen) + 6 * HOUR_US
    cut = tmp_path / "cut"
    cut.mkdir()
    videos, events = (pq.read_table(mini.data / f"{name}.parquet") for name in ("videos", "events"))
    limit = pa.scalar(newest_us, pa.timestamp("us", "UTC"))
    pq.write_table(videos.filter(pc.less_equal(videos["published_at"], limit)), cut / "videos.parquet")
    pq.write_table(events.filter(pc.less_equal(events["time"], limit)), cut / "events.parquet")
    forecast(mini.bundle, mini.data, queries, tmp_path / "frozen.parquet")
    forecast(mini.bundle, mini.data, queries, tmp_path / "growing.parquet", growing_bank=True)
    forecast(mini.bundle, cut, queries, tmp_path / "cut.parquet", growing_bank=True)
    frozen, growing, without_later = (
        pq.read_table(tmp_path / f"{name}.parquet") for name in ("frozen", "growing", "cut")
    )
    assert growing == without_later
    assert growing["q0.5"] != frozen["q0.5"]


def test_a_growing_bank_keeps_the_videos_of_the_bundle(mini: Mini, tmp_path: Path) -> None:
    """The data set holds later videos only, as one that a service exported."""
    later = tmp_path / "later"
    later.mkdir()
    videos, events = (pq.read_table(mini.data / f"{name}.parquet") for name in ("videos", "events"))
    as_of = pa.scalar(mini.as_of_us, pa.timestamp("us", "UTC"))
    videos = videos.filter(pc.greater(videos["published_at"], as_of))
    pq.write_table(videos, later / "videos.parquet")
    pq.write_table(events.filter(pc.is_in(events["video_id"], videos["video_id"])), later / "events.parquet")
    with closing(Forecaster.load(mini.bundle)) as frozen:
        before = frozen.bank.counts()["videos"]
    observed = Observed.of(load_dataset(later), "view")
    until_us = observed.data.last_us() or 0
    with open_with_growing_bank(mini.bundle, observed, until_us) as forecaster:
        assert forecaster.bank.counts()["videos"] == before + videos.num_rows
        known = load_dataset(mini.data).videos
        stored = forecaster.bank.past([video.video_id for video in known])  # type: ignore[attr-defined]
    assert len(stored) == before + videos.num_rows
    newest = max(stored.values(), key=lambda past: past.published_us)
    assert newest.video_id == observed.data.videos[-1].video_id
    with closing(Forecaster.load(mini.bundle)) as frozen:
        assert frozen.bank.counts()["videos"] == before, "the bundle's own bank stays as it is"


def test_an_evaluation_with_a_growing_bank_scores_its_forecasts(mini: Mini, tmp_path: Path) -> None:
    asked: dict[str, Any] = {"published_from_us": mini.as_of_us, "ages_h": (6.0,), "horizons_h": (24.0,)}
    frozen, growing = (evaluate(mini.bundle, mini.data, **asked, growing_bank=on) for on in (False, True))
    assert growing["M3TR"]["pooled"]["nmse"] != frozen["M3TR"]["pooled"]["nmse"]
    assert growing["M3TR"]["pooled"]["n"] == frozen["M3TR"]["pooled"]["n"] > 0
    assert growing["log-linear"]["pooled"]["nmse"] == frozen["log-linear"]["pooled"]["nmse"]
