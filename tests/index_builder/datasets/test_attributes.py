"""Further columns of videos.parquet: which are read, and which of them a model gets."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.attributes.choice import choose_attributes
from index_builder.datasets.check import check_dataset
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.further_columns import ENCODED, FurtherColumns
from index_builder.datasets.load import load_dataset
from model.engagement.attributes import Attributes, attributes_of
from model.errors import DataError
from model.features.attributes import BOOLEANS, Attribute

N = 400
START = datetime(2025, 1, 1, tzinfo=UTC)


def loaded(folder: Path, **columns: Any) -> DataSet:
    """Load a data set whose videos have further columns."""
    n = len(next(iter(columns.values())))
    ids = [f"v{i:04}" for i in range(n)]
    published = [START + timedelta(minutes=i) for i in range(n)]
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table({"video_id": ids, "published_at": published, **columns}), folder / "videos.parquet")
    counters = {"video_id": ids, "time": [at + timedelta(hours=1) for at in published], "views": [1] * n}
    pq.write_table(pa.table(counters), folder / "counters.parquet")
    return load_dataset(folder)


def choices(data: DataSet, **settings: Any) -> dict[str, Attribute | None]:
    given = [video.attributes for video in data.videos]
    return {choice.name: choice.attribute for choice in choose_attributes(given, **settings)}


COLUMNS = {
    "verified": [i % 3 == 0 for i in range(N)],
    "following": [(i * 7) % 90 for i in range(N)],
    "label": [("new", "hot", None, "")[i % 4] for i in range(N)],
    "countries": [("AT,DE", "DE", "CH,DE", "AT,CH", "AT,CH,DE")[i % 5] for i in range(N)],
    "tags_list": [[("music", "live"), ("live",), ("news", "rare")][i % 3] for i in range(N)],
    "url": [f"https://example.org/{i}" for i in range(N)],
    "headline": [f"Story, number {i}, is here" for i in range(N)],
    "row_number": list(range(N)),
    "source": ["crawler"] * N,
    "first_seen_at": [START + timedelta(hours=i) for i in range(N)],
    "day": [date(2025, 1, 1 + i % 5) for i in range(N)],
    "seen_text": [f"2025-01-{1 + i % 9:02} 10:00" for i in range(N)],
    "seen_epoch": [1_700_000_000 + i % 50 for i in range(N)],
    "few": [1.5 if i < 5 else None for i in range(N)],
    "vector": [[0.5, 0.25]] * N,
}


def test_inputs_are_chosen_by_what_the_values_look_like(tmp_path: Path) -> None:
    data = loaded(tmp_path, **COLUMNS)
    found = choices(data)
    assert found["verified"] == Attribute("verified", "boolean", BOOLEANS)
    assert found["label"] == Attribute("label", "category", ("hot", "new"))
    assert found["countries"] == Attribute("countries", "list", ("AT", "CH", "DE"))
    assert found["tags_list"] == Attribute("tags_list", "list", ("live", "music", "news", "rare"))
    following = found["following"]
    assert following is not None and following.kind == "number"
    assert (following.quantiles[0], following.quantiles[-1]) == (0, 89)
    assert [name for name, attribute in found.items() if attribute is not None] == sorted(
        ("verified", "label", "countries", "tags_list", "following")
    )
    assert dict(data.unread) == {
        "first_seen_at": "a time",
        "day": "a time",
        "vector": "is list<element: double>",
    }


def test_the_reasons_are_printed(tmp_path: Path) -> None:
    data = loaded(tmp_path, **COLUMNS)
    reasons = {c.name: c.reason for c in choose_attributes([video.attributes for video in data.videos])}
    assert (reasons["countries"], reasons["following"]) == ("list of 3 values", "number, 0 to 89")
    assert {name: reasons[name] for name in ("url", "row_number", "source", "seen_text", "seen_epoch", "few")} == {
        "url": "text, almost only different values: 0% occur in 20 videos or more",
        "row_number": "almost only different whole numbers: it identifies the video",
        "source": "the same value for every video",
        "seen_text": "a time",
        "seen_epoch": "a time",
        "few": "known of 5 videos; needed: 20",
    }
    found = {(f.column, f.problem) for f in check_dataset(tmp_path) if f.severity == "info"}
    assert ("label", "this column is read: category of 2 values") in found
    assert ("source", "this column is not read: the same value for every video") in found
    assert ("first_seen_at", "this column is not read: a time") in found


def test_a_user_chooses(tmp_path: Path) -> None:
    data = loaded(tmp_path, **COLUMNS)
    assert choices(data, exclude=("countries", "label"))["countries"] is None
    forced = choices(data, only=("row_number", "label"))
    assert [name for name, attribute in forced.items() if attribute is not None] == ["label", "row_number"]
    assert not any(choices(data, only=()).values())
    with pytest.raises(DataError, match="'nothing' is not a further column; allowed: countries, few"):
        choices(data, exclude=("nothing",))
    with pytest.raises(DataError, match="'url' cannot be read: text, almost only different values"):
        choices(data, only=("url",))


def test_values_of_rare_and_many_kinds(tmp_path: Path) -> None:
    names = pa.array(["a", "b"] * 20).dictionary_encode()
    numbers = pa.array([10**16, 7] * 20, pa.decimal128(20))
    long = ["x" * 2000, "y"] * 20
    data = loaded(tmp_path, names=names, numbers=numbers, long=long, null=pa.nulls(40))
    assert data.videos[0].attributes == attributes_of({"names": "a"})
    assert data.videos[1].attributes == attributes_of({"names": "b", "numbers": 7, "long": "y"})


def test_columns_of_parts_are_joined_by_name(tmp_path: Path) -> None:
    loaded(tmp_path, views_before=[1, 2])
    parts = tmp_path / "videos.parquet"
    first = pq.read_table(parts)
    parts.unlink()
    parts.mkdir()
    pq.write_table(first, parts / "a.parquet")
    other = {"video_id": ["w"], "published_at": [START], "views_before": [2.5], "kind": ["x"]}
    pq.write_table(pa.table(other), parts / "b.parquet")
    videos = {video.video_id: dict(video.attributes) for video in load_dataset(tmp_path).videos}
    assert videos == {
        "v0000": {"views_before": 1.0},
        "v0001": {"views_before": 2.0},
        "w": {"views_before": 2.5, "kind": "x"},
    }


def test_written_columns_are_read_as_they_were(tmp_path: Path) -> None:
    given: list[Attributes] = [
        attributes_of({"a": 1.5, "b": True, "c": ["x", "y"], "d": "text"}),
        (),
        attributes_of({"a": "other", "c": []}),
        attributes_of({"a": -2}),
    ]
    writer = FurtherColumns()
    path = tmp_path / "videos.parquet"
    table = {"video_id": list("0123"), "published_at": [START] * 4, ENCODED: [writer.encode(row) for row in given]}
    pq.write_table(pa.table(table), path)
    assert writer.finish(path) == {"a": 1}
    pq.write_table(pa.table({"video_id": ["0"], "time": [START], "views": [1]}), tmp_path / "counters.parquet")
    videos = load_dataset(tmp_path).videos
    assert [video.attributes for video in videos] == [given[0], (), attributes_of({"c": []}), given[3]]
