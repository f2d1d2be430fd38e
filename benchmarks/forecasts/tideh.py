"""Growth of large cascades with reach.

    python -m benchmarks.forecasts.tideh [--data FOLDER] [--and FOLDER] [--bundle BUNDLE]

Reads the data set `tideh`: 100 cascades of a week each. Its dates are unknown, only the hour of day is real. So the first 60 cascades are
moved back by whole weeks, which keeps hour and weekday. Then they end before the other 40 begin, and the normal commands can train on
the 60 and forecast the 40 at 6 h of age, 24 and 120 h ahead. With --and another data set of events, for example weibo_ced, is trained on
too; the 60 are then spread evenly over its time, so that they are on both sides of the split. With --bundle an existing bundle is used.

Prints, by horizon, the median absolute relative error of the growth, |forecast - truth| / truth of N(then) - N(now), with its 95 %
bootstrap interval over cascades, for M3TR, the power-law Hawkes process and simple baselines. All are fitted on the same 60 cascades only,
except M3TR with --and. Nothing is tuned on the 40. Without --and, log-likelihoods on the 40 are printed too.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from index_builder.baselines.simple import GrowthFactor, LogLinear, MeanGrowth, Persistence
from index_builder.bundles.forecast import forecast_at
from index_builder.bundles.open_bundle import open_bundle
from index_builder.cascade.fit import hawkes_growth
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.likelihood import Likelihood, likelihoods
from index_builder.samples.queries import Pairs, Queries, cut_queries
from index_builder.training.train import train
from model.bundle import load_bundle
from model.quantiles.head import MEDIAN

TRAINED = 60
AGES_H, HORIZONS_H = (6.0,), (24.0, 120.0)
# A cascade was observed for 168 h: age and horizon together must not exceed that.
CONFIG = """max_age_h = 48.0
max_horizon_h = 120.0
cuts_per_video = 128
"""
WEEK_US = 7 * 86_400_000_000


def read(folder: Path, name: str) -> pa.Table:
    """The columns that the benchmark needs, times as int64 microseconds."""
    table = pq.read_table(folder / f"{name}.parquet")
    columns = {
        "videos": ("video_id", "published_at", "creator_followers"),
        "events": ("video_id", "time", "type", "reach"),
    }
    made = {}
    for column in columns[name]:
        if column in table.column_names:
            values = table[column].combine_chunks()
            made[column] = (
                values.cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64())
                if column in ("published_at", "time")
                else values
            )
        else:
            made[column] = pa.array(np.zeros(len(table), np.int64))
    return pa.table(made)


def moved(folder: Path, weeks: Callable[[np.ndarray], np.ndarray]) -> tuple[pa.Table, pa.Table]:
    """Videos sorted by time, and events, of a data set; ``weeks`` maps publications (V,) us to the weeks by which each video moves."""
    videos, events = read(folder, "videos"), read(folder, "events")
    videos = videos.take(pc.sort_indices(videos["published_at"]))
    shift = weeks(videos["published_at"].to_numpy()) * WEEK_US
    row = pc.index_in(events["video_id"], videos["video_id"].combine_chunks()).to_numpy()
    for table, column, by in ((videos, "published_at", shift), (events, "time", shift[row])):
        at = table.column_names.index(column)
        changed = table.set_column(at, column, pa.array(table[column].to_numpy() + by).cast(pa.timestamp("us", "UTC")))
        videos, events = (changed, events) if table is videos else (videos, changed)
    return videos, events


def prepare(tideh: Path, other: Path | None, out: Path) -> int:
    """Write the data set to train on and to forecast; return the time at which the last 40 cascades begin, microseconds."""
    start = 0

    def weeks(published: np.ndarray) -> np.ndarray:
        nonlocal start
        start = int(published[TRAINED])
        by = np.zeros(len(published), np.int64)
        if other is None:
            by[:TRAINED] = -1
        else:
            past = read(other, "videos")["published_at"].to_numpy()
            later = -(-(int(past.max()) + 4 * WEEK_US - start) // WEEK_US)
            wanted = np.quantile(past, (np.arange(TRAINED) + 0.5) / TRAINED)
            by[:] = later
            by[:TRAINED] = np.round((wanted - published[:TRAINED]) / WEEK_US)
            start += later * WEEK_US
        return by

    videos, events = moved(tideh, weeks)
    if other is not None:
        more = moved(other, lambda published: np.zeros(len(published), np.int64))
        # The other data set has no reach, so its rows have reach 0; its rows after the as-of time are cut off by --as-of.
        videos = pa.concat_tables([videos, more[0]], promote_options="permissive")
        events = pa.concat_tables([events, more[1]], promote_options="permissive")
    out.mkdir(parents=True)
    pq.write_table(videos, out / "videos.parquet")
    pq.write_table(events, out / "events.parquet")
    return start


def increments(queries: Queries, growth: np.ndarray) -> np.ndarray:
    """N(then) - N(now) from growth in log2 units."""
    now = 1 + queries.pairs.value_now
    increment: np.ndarray = now * np.exp2(growth) - now
    return increment


def median_error(queries: Queries, growth: np.ndarray, seed: int = 0) -> dict[str, tuple[float, float, float]]:
    """Median absolute relative error and its bootstrap interval, by cell; cascades that did not grow are left out."""
    truth = increments(queries, queries.pairs.growth)
    out = {}
    for cell in dict.fromkeys(queries.cell.tolist()):
        rows = (queries.cell == cell) & (truth > 0.5)
        error = np.abs(increments(queries, growth)[rows] - truth[rows]) / truth[rows]
        drawn = np.median(error[np.random.default_rng(seed).integers(0, len(error), (1000, len(error)))], axis=1)
        low, high = np.quantile(drawn, (0.025, 0.975))
        out[cell] = (float(np.median(error)), float(low), float(high))
    return out


def simple(past: Pairs, asked: Pairs) -> dict[str, np.ndarray]:
    """Growth by the simple baselines, and by one that is fitted on medians."""
    found = {b.name: b.fit(past).predict(asked) for b in (Persistence(), MeanGrowth(), GrowthFactor(), LogLinear())}
    factor = np.zeros(len(asked))
    for horizon in np.unique(asked.horizon_s):
        mine = past.horizon_s == horizon
        ratio = np.exp2(past.growth[mine]) - 1
        factor[asked.horizon_s == horizon] = np.log2(1 + np.median(ratio))
    return found | {"median growth factor": factor}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("M3TR_TEST_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default / "tideh")
    parser.add_argument("--and", dest="other", type=Path, help="another data set of events to train on too")
    parser.add_argument("--config", type=Path, help="TOML file with training settings instead of the benchmark's")
    parser.add_argument("--bundle", type=Path, help="a bundle to score, instead of training one")
    parser.add_argument("--keep", type=Path, help="folder to keep data set and bundle in")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-model", action="store_true", help="baselines only")
    args = parser.parse_args()
    with TemporaryDirectory(prefix="m3tr-tideh-") as temporary:
        folder = args.keep or Path(temporary)
        start = prepare(args.data, args.other, folder / "data")
        observed = Observed.of(load_dataset(folder / "data"), "total")
        mine = set(pq.read_table(args.data / "videos.parquet", columns=["video_id"])["video_id"].to_pylist())
        videos = np.array([v.video_id in mine for v in observed.data.videos])
        published = observed.data.published_us
        asked = cut_queries(
            observed, np.flatnonzero(videos & (published >= start)), AGES_H, HORIZONS_H, np.iinfo(np.int64).max
        )
        old = np.flatnonzero(videos & (published < start))
        past = cut_queries(observed, old, AGES_H, HORIZONS_H, start)
        print(f"{len(np.unique(past.video))} cascades learned from, {len(np.unique(asked.video))} forecast", flush=True)
        growths = simple(past.pairs, asked.pairs)
        for name, of_increment in (("power-law Hawkes", True), ("power-law Hawkes, fitted as in the model", False)):
            growths[name] = hawkes_growth(observed, asked, old, AGES_H, HORIZONS_H, start, of_increment=of_increment)
        likelihood: dict[str, Likelihood] = {}
        bundle = args.bundle
        if bundle is None and not args.no_model:
            bundle, config = folder / "bundle", args.config or folder / "config.toml"
            if args.config is None:
                config.write_text(CONFIG, encoding="utf-8")
            began = time.perf_counter()
            train(folder / "data", as_of_us=start - 1, metric="total", out=bundle, seed=args.seed, config=config)
            print(f"trained in {time.perf_counter() - began:.0f} s", flush=True)
        if bundle is not None:
            with open_bundle(bundle) as forecaster:
                counts = forecast_at(forecaster, observed, asked.video, asked.now_us, asked.horizon_us)
            if args.other is None:
                likelihood, _ = likelihoods(load_bundle(bundle), observed, published_from_us=start)
            growths["M3TR"] = np.log2((1 + counts[:, 1 + MEDIAN]) / (1 + asked.pairs.value_now))
    print(
        f"{'median absolute relative error of the growth':<46}" + "".join(f"{c:>26}" for c in dict.fromkeys(asked.cell))
    )
    for name, growth in growths.items():
        cells = median_error(asked, growth)
        print(f"{name:<46}" + "".join(f"{f'{m:.3f} ({low:.3f} to {high:.3f})':>26}" for m, low, high in cells.values()))
    for row in likelihood.items():
        print(f"log-likelihood per token, {row[0]:<38}{row[1].mean:>10.4f} ({row[1].low:.4f} to {row[1].high:.4f})")


if __name__ == "__main__":
    main()
