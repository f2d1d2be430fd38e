"""Loading a canonical data set: what is refused, what is dropped, and what an as-of time hides."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.dataset import DataSet, Rows
from index_builder.datasets.load import load_dataset
from model.errors import DataError

SECOND = 1_000_000
UTC_US = pa.timestamp("us", tz="UTC")


def times(*seconds: float | None, unit: str = "us", zone: str | None = "UTC") -> pa.Array:
    return pa.array([None if s is None else round(s * SECOND) for s in seconds], pa.timestamp("us", tz=zone)).cast(
        pa.timestamp(unit, tz=zone), safe=False
    )


def write(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, columns in files.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


VIDEOS = {"video_id": ["b", "a", "c"], "published_at": times(200, 100, 100)}
EVENTS = {"video_id": ["a", "a"], "time": times(101, 102), "type": ["view", "like"]}


def listed(rows: Rows | None) -> list[tuple[int, int, int, int]]:
    assert rows is not None
    return list(zip(rows.video.tolist(), rows.time_us.tolist(), rows.type.tolist(), rows.value.tolist(), strict=True))


def test_events_are_sorted_by_video_and_time_with_the_file_order_kept(tmp_path: Path) -> None:
    events = {
        "video_id": ["b", "a", "a", "c", "a"],
        "time": times(300, 102, 101, 100, 102),
        "type": ["view", "share", "view", "like", "repost"],
        "count": [1, 2, 3, 4, 5],
        "reach": [None, 7, -1, 0, 9],
    }
    data = load_dataset(write(tmp_path, videos=VIDEOS, events=events))
    assert [v.video_id for v in data.videos] == ["a", "c", "b"], "by publication, then by id"
    assert data.types == ("view", "like", "share", "repost"), "known types first, in their order"
    s = SECOND
    assert listed(data.events) == [
        (0, 101 * s, 0, 3),
        (0, 102 * s, 2, 2),
        (0, 102 * s, 3, 5),
        (1, 100 * s, 1, 4),
        (2, 300 * s, 0, 1),
    ]
    assert data.events is not None
    assert data.events.reach.tolist() == [0, 7, 9, 0, 0]
    assert data.events.offsets.tolist() == [0, 3, 4, 5]
    assert data.counters is None
    assert data.dropped == {}
    assert data.last_us() == 300 * s


def test_counters_become_one_row_for_each_type_and_null_is_not_observed(tmp_path: Path) -> None:
    counters = {
        "video_id": ["a", "a"],
        "time": times(150, 120),
        "likes": pa.array([float("nan"), 3.0]),
        "views": [10, None],
        "countries": [1, 2],
    }
    data = load_dataset(write(tmp_path, videos=VIDEOS, counters=counters))
    assert data.types == ("view", "like")
    assert listed(data.counters) == [(0, 120 * SECOND, 1, 3), (0, 150 * SECOND, 0, 10)]
    assert data.dropped == {}


@pytest.mark.parametrize(("unit", "zone"), [("s", "UTC"), ("ms", "Asia/Tokyo"), ("us", None), ("ns", "UTC")])
def test_times_of_any_unit_and_zone_are_microseconds_utc(tmp_path: Path, unit: str, zone: str | None) -> None:
    videos = {"video_id": ["a"], "published_at": times(100, unit=unit, zone=zone)}
    events = {"video_id": ["a"], "time": times(101, unit=unit, zone=zone), "type": ["view"]}
    data = load_dataset(write(tmp_path, videos=videos, events=events))
    assert listed(data.events) == [(0, 101 * SECOND, 0, 1)]


def test_nanoseconds_are_rounded_down_also_before_1970(tmp_path: Path) -> None:
    ns = pa.array([-1_500, 1_999], pa.timestamp("ns", tz="UTC"))
    videos = {"video_id": ["a"], "published_at": pa.array([-1_501], pa.timestamp("ns", tz="UTC"))}
    data = load_dataset(
        write(tmp_path, videos=videos, events={"video_id": ["a", "a"], "time": ns, "type": ["view", "view"]})
    )
    assert data.events is not None
    assert data.events.time_us.tolist() == [-2, 1]


def test_rows_that_cannot_be_used_are_dropped_and_counted(tmp_path: Path) -> None:
    events = {
        "video_id": ["zz", None, "a", "a", "a", "a", "a", "a", "a", "a", "a"],
        "time": times(101, 101, 99, None, *[101] * 7),
        "type": ["view", "view", "view", "view", None, "", "view", "view", "view", "view", "view"],
        "count": pa.array([1, 1, 1, 1, 1, 1, -1, 0.5, None, 0, 2], pa.float64()),
    }
    counters = {"video_id": ["c", "c"], "time": times(120, 121), "views": [-4, 5], "likes": [1.5, 2.0]}
    data = load_dataset(write(tmp_path, videos=VIDEOS, events=events, counters=counters))
    assert listed(data.events) == [(0, 101 * SECOND, 0, 2)]
    assert listed(data.counters) == [(1, 121 * SECOND, 0, 5), (1, 121 * SECOND, 1, 2)]
    assert data.dropped == {
        "events.parquet: unknown video": 2,
        "events.parquet: before publication": 1,
        "events.parquet: no time": 1,
        "events.parquet: no type": 2,
        "events.parquet: count negative": 1,
        "events.parquet: count fractional": 1,
        "events.parquet: no count": 1,
        "events.parquet: count 0": 1,
        "counters.parquet: views negative": 1,
        "counters.parquet: likes fractional": 1,
    }


def test_content_of_any_text_type_and_missing_cells(tmp_path: Path) -> None:
    videos = VIDEOS | {
        "title": pa.array(["", "Привет", None]).dictionary_encode(),
        "tags": [["x", "y"], [], None],
        "category": [7, None, 9],
        "duration_s": [12, None, -3],
        "creator_followers": [float("nan"), 5.0, float("inf")],
        "extra": [True, False, None],
    }
    a, c, b = load_dataset(write(tmp_path, videos=videos, events=EVENTS)).videos
    assert (a.title, a.tags, a.category, a.duration_s, a.creator_followers) == ("Привет", None, None, None, 5.0)
    assert (b.title, b.tags, b.category, b.duration_s, b.creator_followers) == (None, "x,y", "7", 12.0, None)
    assert (c.title, c.tags, c.category, c.duration_s, c.creator_followers) == (None, None, "9", None, None)


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (lambda p: None, "no such data set folder"),
    "no videos": (lambda p: write(p, events=EVENTS), r"videos\.parquet: the file is missing"),
    "no rows file": (lambda p: write(p, videos=VIDEOS), "neither events.parquet nor counters.parquet"),
    "no column": (
        lambda p: write(p, videos={"video_id": ["a"]}, events=EVENTS),
        r"videos\.parquet: column published_at: is missing; allowed: timestamp",
    ),
    "no counter": (
        lambda p: write(p, videos=VIDEOS, counters={"video_id": ["a"], "time": times(101)}),
        "counters.parquet: column views, likes, comments, shares: is missing",
    ),
    "text time": (
        lambda p: write(p, videos=VIDEOS, events=EVENTS | {"time": ["today", "now"]}),
        r"events\.parquet: column time: is string; allowed: timestamp",
    ),
    "text count": (
        lambda p: write(p, videos=VIDEOS, events=EVENTS | {"count": ["1", "2"]}),
        r"events\.parquet: column count: is string; allowed: integer or floating point",
    ),
    "too many types": (
        lambda p: write(
            p,
            videos=VIDEOS,
            events={"video_id": ["a"] * 300, "time": times(*[101] * 300), "type": [f"t{i}" for i in range(300)]},
        ),
        r"events\.parquet: column type: has more than 256",
    ),
}


ODD: dict[str, tuple[dict[str, Any], str, str]] = {
    "two rows": (
        {"video_id": ["a", "b", "a"], "published_at": times(1, 2, 3)},
        "videos.parquet: id is not unique, the first row is used",
        "row 2, 'a'",
    ),
    "no id": (
        {"video_id": ["a", None, "b"], "published_at": times(1, 2, 2)},
        "videos.parquet: no id",
        "row 1",
    ),
    "no publication": (
        {"video_id": ["a", "b", "c"], "published_at": times(1, 2, None)},
        "videos.parquet: no time of publication",
        "row 2",
    ),
    "out of range": (
        {"video_id": ["c", "a", "b"], "published_at": pa.array([2**60, 1, 2], pa.timestamp("ms", tz="UTC"))},
        "videos.parquet: published outside years 1 to 9998",
        "row 0",
    ),
}


@pytest.mark.parametrize("case", ODD)
def test_a_bad_video_is_left_out_and_reported(tmp_path: Path, case: str) -> None:
    videos, reason, first = ODD[case]
    data = load_dataset(write(tmp_path, videos=videos, events=EVENTS))
    assert [v.video_id for v in data.videos] == ["a", "b"]
    assert (data.dropped, data.first) == ({reason: 1}, {reason: first})
    assert data.left_out() == [f"{reason}: 1 row left out, the first is {first}"]


def test_counters_win_where_a_type_of_a_video_also_has_events(tmp_path: Path) -> None:
    counters = {"video_id": ["a"], "time": times(103), "likes": [3]}
    data = load_dataset(write(tmp_path, videos=VIDEOS, events=EVENTS, counters=counters))
    assert (listed(data.events), listed(data.counters)) == ([(0, 101 * SECOND, 0, 1)], [(0, 103 * SECOND, 1, 3)])
    assert data.left_out() == [
        "events.parquet: this type of the video is also in counters.parquet, which is used instead: 1 row left out, "
        "the first is of video 'a', type 'like'"
    ]


@pytest.mark.parametrize("case", REFUSED)
def test_a_refusal_names_file_column_and_what_is_allowed(tmp_path: Path, case: str) -> None:
    make, message = REFUSED[case]
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message):
        load_dataset(tmp_path / "data")


def test_a_broken_file_is_refused(tmp_path: Path) -> None:
    write(tmp_path, videos=VIDEOS)
    (tmp_path / "events.parquet").write_bytes(b"not Parquet")
    with pytest.raises(DataError, match=r"events\.parquet: cannot be read as a Parquet file"):
        load_dataset(tmp_path)


def test_a_data_set_without_rows_loads(tmp_path: Path) -> None:
    empty = {"video_id": pa.array([], pa.string()), "published_at": pa.array([], UTC_US)}
    nothing = {
        "video_id": pa.array([], pa.string()),
        "time": pa.array([], UTC_US),
        "type": pa.array([], pa.string()),
    }
    data = load_dataset(write(tmp_path, videos=empty, events=nothing))
    assert (data.videos, data.types, listed(data.events), data.last_us()) == ([], (), [], None)


def equal(one: DataSet, two: DataSet) -> bool:
    def same(a: Rows | None, b: Rows | None) -> bool:
        if a is None or b is None:
            return a is b
        names = ("video", "time_us", "type", "value", "reach", "offsets")
        return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)

    return (
        (one.videos, one.types, one.dropped) == (two.videos, two.types, two.dropped)
        and same(one.events, two.events)
        and same(one.counters, two.counters)
    )


def test_an_as_of_load_equals_a_data_set_without_later_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n = 4000
    published = rng.integers(0, 1000, 50)
    videos = {"video_id": [f"v{i}" for i in range(50)], "published_at": times(*published)}
    seconds = np.sort(rng.integers(0, 2000, n))
    events = pa.table(
        {
            "video_id": [f"v{i}" for i in rng.integers(0, 55, n)],
            "time": times(*seconds),
            "type": np.where(seconds > 900, "later", rng.choice(["view", "like"], n)),
            "count": rng.integers(-1, 5, n),
        }
    )
    whole = write(tmp_path / "whole", videos=videos, events=events)
    cut = write(
        tmp_path / "cut",
        videos=pa.table(videos).filter(pa.array(published <= 700)),
        events=events.filter(pa.array(seconds <= 700)),
    )
    seen = load_dataset(whole, before_us=700 * SECOND)
    assert equal(seen, load_dataset(cut))
    assert seen.last_us() == 700 * SECOND
    assert "later" not in seen.types


def test_the_batch_size_does_not_change_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(4)
    counters = {
        "video_id": rng.choice(["a", "b", "c"], 500),
        "time": times(*rng.integers(150, 250, 500)),
        "views": rng.integers(0, 9, 500),
        "likes": pa.array(rng.integers(0, 9, 500), mask=rng.random(500) < 0.2),
    }
    write(tmp_path, videos=VIDEOS, counters=counters)
    whole = load_dataset(tmp_path)
    monkeypatch.setattr("index_builder.datasets.parquet_files.BATCH_ROWS", 7)
    assert equal(whole, load_dataset(tmp_path))


@pytest.mark.parametrize(
    ("name", "n_videos", "n_rows", "limit_s"),
    [("youtube_trending", 77_043, 382_747 * 3, 6), ("weibo_ced", 3_387, 1_274_382, 4)],
)
def test_real_data_sets_load_completely_and_fast(
    real_data: Path, name: str, n_videos: int, n_rows: int, limit_s: float
) -> None:
    start = time.perf_counter()
    data = load_dataset(real_data / name)
    took_s = time.perf_counter() - start
    rows = data.events if data.events is not None else data.counters
    assert rows is not None
    assert (len(data.videos), len(rows), data.dropped) == (n_videos, n_rows, {})
    assert took_s < limit_s, "twice the time it takes on two quiet cores"
