"""The reference of the published table: gradient boosting with a bundle's inputs, on a file of queries.

    python -m benchmarks.forecasts.boosting BUNDLE DATA QUERIES --as-of TIME --out FORECASTS

Trains LightGBM (``index_builder.baselines.boosting``) on what was known at TIME and writes the queries with mean, q0.1, q0.5 and q0.9.
The inputs are those that the bundle declares.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pandas as pd

from index_builder.baselines.boosting import boosted
from index_builder.cli import parse_time
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.samples.queries import Pairs, Queries
from model.bundle import load_bundle
from model.engagement.bins import SECOND_US

COLUMNS = ("mean", "q0.1", "q0.5", "q0.9")


def us(times: pd.Series) -> np.ndarray:
    """Times as int64 microseconds since 1970 UTC."""
    return pd.to_datetime(times, utc=True).dt.as_unit("us").astype("int64").to_numpy()


def queries_of(table: pd.DataFrame, observed: Observed) -> Queries:
    """The queries of a table with the columns video_id, now and target_time. Their growth is not known."""
    number = {video.video_id: v for v, video in enumerate(observed.data.videos)}
    video = table.video_id.map(number).to_numpy(np.int64)
    now_us, horizon_us = us(table["now"]), us(table["target_time"]) - us(table["now"])
    age_s = (now_us - observed.data.published_us[video]) / SECOND_US
    pairs = Pairs(age_s, horizon_us / SECOND_US, observed.count_at(video, now_us), np.full(len(video), np.nan))
    return Queries(video, now_us, horizon_us, np.full(len(video), "asked"), pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("queries", type=Path)
    parser.add_argument("--as-of", type=parse_time, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    schema = load_bundle(args.bundle).manifest.schema
    past = Observed.of(load_dataset(args.data, before_us=args.as_of), schema.metric)
    observed = Observed.of(load_dataset(args.data), schema.metric)
    table = pd.read_parquet(args.queries).reset_index(drop=True)
    asked = queries_of(table, observed)
    growth = boosted(past, observed, asked, schema, args.as_of)
    counts = (1 + asked.pairs.value_now[:, None]) * np.exp2(growth) - 1
    table.assign(**dict(zip(COLUMNS, counts.T, strict=True))).to_parquet(args.out)


if __name__ == "__main__":
    main()
