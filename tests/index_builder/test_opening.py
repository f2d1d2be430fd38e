"""A bundle can be read while a service holds its bank."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.dataset import load_dataset
from index_builder.forecast import forecast
from model.forecaster import Forecaster
from tests.conftest import Mini


def test_forecasts_are_the_same_while_the_bank_is_open_elsewhere(mini: Mini, tmp_path: Path) -> None:
    data = load_dataset(mini.data)
    chosen = [v for v in data.videos if v.published_us < mini.as_of_us][-20:]
    now = pa.array([v.published_us + 6 * 3_600_000_000 for v in chosen], pa.timestamp("us", "UTC"))
    later = pa.array([v.published_us + 30 * 3_600_000_000 for v in chosen], pa.timestamp("us", "UTC"))
    queries = tmp_path / "queries.parquet"
    table = {"video_id": [v.video_id for v in chosen], "metric": ["view"] * 20, "now": now, "target_time": later}
    pq.write_table(pa.table(table), queries)
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
