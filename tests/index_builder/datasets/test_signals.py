"""Further columns of counters.parquet: which are signals, and which of them a model gets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.check import check_dataset
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_dataset
from index_builder.datasets.signals.choice import choose_signals
from model.engagement.bins import HOUR_US
from model.errors import DataError

START = datetime(2025, 1, 1, tzinfo=UTC)
VIDEOS, READINGS = 30, 5
N = VIDEOS * READINGS


def loaded(folder: Path, **columns: Any) -> DataSet:
    """Load a data set with further columns of counters."""
    folder.mkdir(exist_ok=True)
    ids = [f"v{i:02}" for i in range(VIDEOS)]
    pq.write_table(pa.table({"video_id": ids, "published_at": [START] * VIDEOS}), folder / "videos.parquet")
    table = {
        "video_id": np.repeat(ids, READINGS).tolist(),
        "time": [START + timedelta(hours=1 + i % READINGS) for i in range(N)],
        "views": [1 + i % READINGS for i in range(N)],
        **columns,
    }
    pq.write_table(pa.table(table), folder / "counters.parquet")
    return load_dataset(folder)


COLUMNS = {
    "rank": [(i * 7) % 50 for i in range(N)],
    "heat": pa.array([i / 3 if i % 4 else None for i in range(N)]),
    "saves": [i % READINGS for i in range(N)],
    "seen_at": [1_735_000_000 + i // 2 for i in range(N)],
    "row": list(range(N)),
    "same": [3] * N,
    "few": [1.5 if i < 10 else None for i in range(N)],
    "place": ["home"] * N,
}


def test_signals_are_chosen_by_what_their_readings_look_like(tmp_path: Path) -> None:
    data = loaded(tmp_path, **COLUMNS)
    found = {choice.name: (choice.signal is not None, choice.reason) for choice in choose_signals(data.signals)}
    assert found == {
        "rank": (True, "signal, falls in 12.5% and rises in 87.5% of steps"),
        "heat": (True, "signal, falls in 0.0% and rises in 100.0% of steps"),
        "saves": (True, "signal, falls in 0.0% and rises in 100.0% of steps"),
        "seen_at": (False, "a time"),
        "row": (False, "only different whole numbers: it identifies the row"),
        "same": (False, "all readings are the same"),
        "few": (False, "readings of 2 videos; needed: 20"),
    }
    assert dict(data.unread) == {"place": "is string"}
    noted = {(f.column, f.problem) for f in check_dataset(tmp_path) if f.severity == "info"}
    assert ("rank", f"this column is read: {found['rank'][1]}") in noted
    assert {("seen_at", "this column is not read: a time"), ("place", "this column is not read: is string")} <= noted


def test_a_user_chooses(tmp_path: Path) -> None:
    signals = loaded(tmp_path, **COLUMNS).signals

    def read(**settings: Any) -> list[str]:
        return [choice.name for choice in choose_signals(signals, **settings) if choice.signal is not None]

    assert read(exclude=("rank",)) == ["heat", "saves"]
    assert read(only=("row", "rank")) == ["rank", "row"]
    assert read(only=()) == []
    with pytest.raises(DataError, match="'likes' is not a signal; allowed: few, heat, rank"):
        read(only=("likes",))
    with pytest.raises(DataError, match="'same' cannot be read: all readings are the same"):
        read(only=("same",))


def test_readings_are_sorted_and_rows_before_publication_left_out(tmp_path: Path) -> None:
    data = loaded(tmp_path, rank=[float(N - i) if i != 3 else 1e16 for i in range(N)])
    path = tmp_path / "counters.parquet"
    table = pq.read_table(path)
    early = table.slice(0, 1).set_column(1, "time", pa.array([START - timedelta(hours=1)], pa.timestamp("us", "UTC")))
    pq.write_table(pa.concat_tables([table.take(list(range(N))[::-1]), early.cast(table.schema)]), path)
    again = load_dataset(tmp_path)
    for name in ("offsets", "time_us", "value"):
        np.testing.assert_array_equal(getattr(again.signals["rank"], name), getattr(data.signals["rank"], name))
    assert data.signals["rank"].offsets[:3].tolist() == [0, 4, 9]
    cells = data.signal_cells_at(np.array([1, 0]), data.published_us[:2] + 2 * HOUR_US)["rank"].readings()
    assert [readings.values.tolist() for readings in cells] == [[145, 144], [150, 149]]


def test_row_labels_of_pandas_are_no_signal(tmp_path: Path) -> None:
    loaded(tmp_path, rank=[i % 9 for i in range(N)])
    for name in ("counters.parquet", "videos.parquet"):
        frame = pd.read_parquet(tmp_path / name)
        frame.sample(frac=1, random_state=1).to_parquet(tmp_path / name)
        assert "__index_level_0__" in pq.read_schema(tmp_path / name).names
    data = load_dataset(tmp_path)
    assert list(data.signals) == ["rank"] and {video.attributes for video in data.videos} == {()}
