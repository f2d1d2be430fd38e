"""Parquet files as other programs write them: each loads to the same data as the plain file, or is refused in one line."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.check import check_dataset
from index_builder.datasets.dataset import DataSet, Rows
from index_builder.datasets.load import load_dataset
from model.errors import DataError
from tests.index_builder.datasets.parquet_variants import NOW, REFUSED, SAME, cast, folders, plain, write


def the_same(one: DataSet, two: DataSet) -> bool:
    def same(a: Rows | None, b: Rows | None) -> bool:
        if a is None or b is None:
            return a is b
        names = ("video", "time_us", "type", "value", "reach", "offsets")
        return all(np.array_equal(getattr(a, n), getattr(b, n)) for n in names)

    return (
        (one.videos, one.types) == (two.videos, two.types)
        and same(one.events, two.events)
        and same(one.counters, two.counters)
    )


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    return load_dataset(write(tmp_path_factory.mktemp("plain"), plain()))


@pytest.mark.parametrize("variant", SAME)
def test_other_ways_of_writing_load_to_the_same_data(variant: str, tmp_path: Path, usual: DataSet) -> None:
    folder = tmp_path / "data"
    SAME[variant](folder)
    loaded = load_dataset(folder)
    assert the_same(loaded, usual)
    found = check_dataset(folder, now_us=NOW)
    for reason in loaded.dropped:
        file = "counters.parquet" if "counters.parquet" in reason else reason.split(":")[0]
        assert [f for f in found if f.file == file and f.rows], f"check is silent on {reason}"
        assert any(reason in line and loaded.first[reason] in line for line in loaded.left_out())
    if not loaded.dropped:
        assert [
            f for f in found if f.severity == "error" and "too large" not in f.problem and "negative" not in f.problem
        ] == []


@pytest.mark.parametrize("variant", REFUSED)
def test_unreadable_files_are_refused_in_one_line_by_the_loader_and_the_check(variant: str, tmp_path: Path) -> None:
    make, message = REFUSED[variant]
    make(tmp_path / "data")
    with pytest.raises(DataError, match=message) as refused:
        load_dataset(tmp_path / "data")
    assert "\n" not in str(refused.value)
    errors = [f for f in check_dataset(tmp_path / "data", now_us=NOW) if f.severity == "error"]
    messages = [f"{f.file}: column {f.column}: {f.problem}" if f.column else f.problem for f in errors]
    assert str(refused.value) in " ".join(messages) or any(str(refused.value).endswith(line) for line in messages)


def test_naive_times_cause_a_warning(tmp_path: Path) -> None:
    cast("events", "time", pa.timestamp("us"))(tmp_path)
    found = [(f.severity, f.column, f.problem) for f in check_dataset(tmp_path, now_us=NOW)]
    assert ("warning", "time", "has no time zone; it is read as UTC") in found


@pytest.mark.parametrize("file", ["videos", "events"])
@pytest.mark.parametrize("kind", ["no rows", "no row group", "pandas' empty frame"])
def test_files_without_rows_load(tmp_path: Path, file: str, kind: str) -> None:
    table = plain()[file].slice(0, 0)
    write(tmp_path, plain() | {file: table})
    if kind == "no row group":
        pq.ParquetWriter(tmp_path / f"{file}.parquet", table.schema).close()
    if kind == "pandas' empty frame":
        pq.write_table(pa.table({name: pa.nulls(0) for name in table.column_names}), tmp_path / f"{file}.parquet")
    data = load_dataset(tmp_path)
    assert (len(data.videos), len(data.events or [])) == ((0, 0) if file == "videos" else (3, 0))
    assert [f for f in check_dataset(tmp_path, now_us=NOW) if f.severity == "error"] == []


def test_row_numbers_continue_across_parts(tmp_path: Path) -> None:
    folders(tmp_path)
    more = plain()["events"].slice(0, 1).set_column(0, "video_id", pa.array(["zz"]))
    pq.write_table(more, tmp_path / "events.parquet" / "part-00009.parquet")
    assert load_dataset(tmp_path).first == {"events.parquet: unknown video": "row 4"}
    assert [f.first_row for f in check_dataset(tmp_path, now_us=NOW) if "not in videos" in f.problem] == [4]
    shutil.rmtree(tmp_path / "counters.parquet")
    assert load_dataset(tmp_path).counters is None


@pytest.mark.parametrize(
    ("file", "given", "meant"),
    [
        ("videos", "titel", "title"),
        ("videos", "followers", "creator_followers"),
        ("videos", "duration", "duration_s"),
        ("counters", "view_count", "views"),
        ("counters", "viewCount", "views"),
        ("counters", "like", "likes"),
    ],
)
def test_misspelt_columns_are_reported_with_the_intended_name(
    tmp_path: Path, file: str, given: str, meant: str
) -> None:
    tables = plain()
    if meant in tables[file].column_names:
        tables[file] = tables[file].drop_columns(meant)
    tables[file] = tables[file].append_column(given, pa.array([1] * len(tables[file])))
    found = check_dataset(write(tmp_path, tables), now_us=NOW)
    assert [(f.severity, f.problem) for f in found if f.column == given and f.severity != "info"] == [
        ("warning", f"this is not a column of the format; did you mean {meant}?")
    ]
