"""The check finds every planted fault and names its file, column and row."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console

from index_builder.datasets.check import check_dataset
from index_builder.datasets.findings import Finding, report

SECOND = 1_000_000
NOW = 1000 * SECOND


def times(*seconds: int | None, zone: str | None = "UTC") -> pa.Array:
    return pa.array([None if s is None else s * SECOND for s in seconds], pa.timestamp("us", tz=zone))


def write(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True, parents=True)
    for name, columns in files.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def where(findings: list[Finding]) -> set[tuple[str, str, str, str, int | None, int | None]]:
    return {(f.severity, f.file[:6], f.column, f.problem, f.first_row, f.rows) for f in findings}


def test_every_planted_fault_is_named_with_its_row(tmp_path: Path) -> None:
    videos = {
        "video_id": ["a", "b", None, "a", "", "c", "d"],
        "published_at": times(100, 100, 100, 100, 100, None, 2000),
        "duration_s": [1.0, -2.0, None, 1.0, 1.0, 1.0, 1.0],
    }
    events = {
        "video_id": ["a", "zz", "a", "a", None, "a", "a", "a", "a", "a", "b", "b", "a", "zz"],
        "time": times(150, 150, 90, None, 150, 150, 150, 150, 150, 150, 3000, 200, 150, 150, zone=None),
        "type": [
            "view",
            "view",
            "view",
            "view",
            "view",
            "",
            "share",
            "share",
            "share",
            "gift",
            "view",
            "view",
            "view",
            "view",
        ],
        "count": pa.array([1, 1, 1, 1, 1, 1, -3, 1.5, None, 1, 1, 0, 1, 1], pa.float64()),
        "reach": pa.array([0, 1, 1, 1, 1, 1, 1, 1, 1, -2, 1, 1, 0, 1]),
    }
    counters = {
        "video_id": ["b", "b", "b", "a", "b"],
        "time": times(300, 200, 400, 200, 400),
        "views": [50, 60, None, 7, None],
        "likes": [1.0, -2.0, float("nan"), 2.5, 2.0],
    }
    found = where(check_dataset(write(tmp_path, videos=videos, events=events, counters=counters), now_us=NOW))
    naive = "1970-01-01T00:%s.000000Z"
    assert found == {
        ("error", "videos", "video_id", "empty; left out", 2, 2),
        ("error", "videos", "video_id", "not unique; the first row is used, first: a", 3, 1),
        ("error", "videos", "published_at", "no time", 5, 1),
        ("warning", "videos", "published_at", f"in the future, first: {naive % '33:20'}", 6, 1),
        ("warning", "videos", "duration_s", "negative; read as missing, first: -2.0", 1, 1),
        ("warning", "events", "time", "has no time zone; it is read as UTC", None, None),
        ("warning", "events", "video_id", "not in videos.parquet; left out, first: zz", 1, 2),
        ("warning", "events", "time", f"before publication; left out, first: {naive % '01:30'}", 2, 1),
        ("error", "events", "time", "no time", 3, 1),
        ("error", "events", "video_id", "empty; left out", 4, 1),
        ("warning", "events", "type", "empty; left out", 5, 1),
        ("error", "events", "count", "negative, first: -3.0", 6, 1),
        ("error", "events", "count", "fractional, first: 1.5", 7, 1),
        ("error", "events", "count", "empty or NaN, first: None", 8, 1),
        ("info", "events", "type", "types other than view, like, comment, share: gift", 9, 1),
        ("warning", "events", "reach", "not a number >= 0; read as unknown, first: -2", 9, 1),
        ("warning", "events", "time", f"in the future, first: {naive % '50:00'}", 10, 1),
        ("warning", "events", "count", "0; left out, first: 0.0", 11, 1),
        ("warning", "events", "video_id, time, type", "equal to another row; both are used", 12, 1),
        ("error", "counte", "likes", "negative, first: -2.0", 1, 1),
        ("error", "counte", "likes", "fractional, first: 2.5", 3, 1),
        ("warning", "counte", "likes", "NaN; read as not observed, first: nan", 2, 1),
        ("warning", "counte", "views", "falls; the larger value is used", 0, 1),
        ("warning", "counte", "video_id, time", "observed twice; the larger value is used", 4, 1),
        (
            "error",
            "counte",
            "views",
            "also has events of type 'view'; a type of a video may have events or counters, not both, so the events are left out",
            0,
            3,
        ),
    }


def test_row_numbers_continue_across_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index_builder.datasets.parquet_files.BATCH_ROWS", 2)
    events = {
        "video_id": ["a", "a", "a", "a", "x", "a", "x"],
        "time": times(*[150, 151, 152, 90, 154, 150, 156]),
        "type": ["view", "view", "view", "view", "view", "gift", "view"],
    }
    found = where(
        check_dataset(
            write(tmp_path, videos={"video_id": ["a"], "published_at": times(100)}, events=events), now_us=NOW
        )
    )
    assert found == {
        ("warning", "events", "time", "before publication; left out, first: 1970-01-01T00:01:30.000000Z", 3, 1),
        ("warning", "events", "video_id", "not in videos.parquet; left out, first: x", 4, 2),
        ("info", "events", "type", "types other than view, like, comment, share: gift", 5, 1),
    }


def test_missing_and_wrong_columns_and_files_are_found(tmp_path: Path) -> None:
    write(tmp_path, videos={"video_id": [1], "title": [1.5]}, events={"video_id": ["a"], "time": ["now"]})
    (tmp_path / "counters.parquet").write_bytes(b"")
    found = where(check_dataset(tmp_path, now_us=NOW))
    assert {f[:4] for f in found if f[1] != "counte"} == {
        ("error", "videos", "video_id", "is int64; allowed: string"),
        ("error", "videos", "published_at", "is missing; allowed: timestamp"),
        ("error", "videos", "title", "is double; allowed: string, integer or list of strings"),
        ("error", "events", "time", "is string; allowed: timestamp; in pandas: pd.to_datetime(column, utc=True)"),
        ("error", "events", "type", "is missing; allowed: string"),
    }
    assert any(f[1] == "counte" and "cannot be read as a Parquet file" in f[3] for f in found)
    assert [(f.file, f.problem) for f in check_dataset(tmp_path / "none")] == [
        (str(tmp_path / "none"), "no such folder")
    ]
    (tmp_path / "empty").mkdir()
    assert {(f.file, f.severity) for f in check_dataset(tmp_path / "empty")} == {
        ("videos.parquet", "error"),
        ("events.parquet", "error"),
    }


def test_report_prints_errors_first_and_returns_whether_there_were_none() -> None:
    out = io.StringIO()
    console = Console(file=out, width=120)
    assert report([], console)
    assert report([Finding("warning", "events.parquet", "time", "late [1/2]", 7, 1234)], console)
    assert not report([Finding("error", "videos.parquet", "video_id", "empty", 0, 1)], console)
    text = out.getvalue()
    assert "late [1/2]" in text
    assert "1,234" in text
    assert "1 errors, 0 warnings" in text


@pytest.mark.parametrize("name", ["youtube_trending", "weibo_ced", "tideh"])
def test_real_data_sets_have_no_errors(real_data: Path, name: str) -> None:
    assert [f for f in check_dataset(real_data / name) if f.severity == "error"] == []
