"""Data sets of few videos: is the model at least as good as the best simple baseline, and do its intervals cover?

    python -m benchmarks.forecasts.few_videos [SET ...] [--videos 100 250 1000] [--draws 10] [--test] [--work DIR]

Draws videos from the newest 5,000 of each real set before a time, trains on them as of that time, and forecasts 1,000 videos that were
published later. The bank holds the drawn videos only. The baselines learn from the same drawn videos, at the asked ages and horizons
only. The later videos are from a development period; with --test, they are from the test period of the published table. DIR keeps the
scores of each draw: what exists is not computed again. Prints, for each set and number of videos, the mean over draws of nMSE of the
model and of the best simple baseline, their quotient with its standard error, and the mean cover of the interval of 80 %.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import pandas as pd

from index_builder.baselines.simple import GrowthFactor, LogLinear, MeanGrowth, Persistence
from index_builder.bundles.forecast import forecast_at
from index_builder.bundles.open_bundle import open_bundle
from index_builder.cli import parse_time
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.samples.queries import cut_queries
from index_builder.scoring.metrics import nmse, score

ROOT: Final = Path(__file__).resolve().parents[2]
NEWEST: Final = 5000
"""Number of videos from which a draw is taken. A draw from several years would mostly show how growth has drifted."""
ASKED: Final = 1000
"""Maximum number of videos to forecast."""
MODEL: Final = "M3TR"
Scores = dict[str, dict[str, Any]]
"""Scores by method, and the weights of the ensemble's members under "members"."""
BASELINES: Final = (Persistence, MeanGrowth, GrowthFactor, LogLinear)


@dataclass(frozen=True)
class Case:
    """A set and its queries. The forecast videos are published from ``development`` to ``test``, or in the test period from ``test`` on."""

    folder: str
    metric: str
    development: str
    test: str
    ages_h: tuple[float, ...]
    horizons_h: tuple[float, ...]
    tolerance_h: float = 6.0


CASES: Final = {
    "bilibili": Case("bilibili_rank", "views", "2023-02-08", "2023-02-20", (12, 24), (12, 24), 2),
    "hn": Case("hn_front", "likes", "2022-02-01", "2022-05-01", (3,), (3, 6, 12), 1),
    "zhihu": Case("zhihu_hot", "comments", "2023-09-01", "2024-01-01", (12,), (6, 12), 1),
    "youtube": Case("youtube_trending", "views", "2026-05-01", "2026-06-01", (24, 48), (24, 72, 120)),
    "weibo": Case("weibo_ced", "total", "2013-03-01", "2013-06-01", (1, 6), (24, 72)),
}


def draw(source: Path, out: Path, as_of: pd.Timestamp, before: pd.Timestamp | None, videos: int, seed: int) -> None:
    """Write a data set of ``videos`` of the NEWEST videos before ``as_of`` and up to ASKED videos published from then on."""
    rng = np.random.default_rng([videos, seed])
    table = pd.read_parquet(source / "videos.parquet")
    published = pd.to_datetime(table.published_at, utc=True)
    past = table[published < as_of].iloc[np.argsort(published[published < as_of].to_numpy(), kind="stable")[-NEWEST:]]
    later = table[(published >= as_of) & ((published < before) if before else True)]
    parts = [part.iloc[rng.permutation(len(part))[:n]] for part, n in ((past, videos), (later, ASKED))]
    chosen = pd.concat(parts)
    out.mkdir(parents=True)
    chosen.to_parquet(out / "videos.parquet", index=False)
    for name in ("events.parquet", "counters.parquet"):
        if (source / name).exists():
            filters = [("video_id", "in", chosen.video_id.tolist())]
            pd.read_parquet(source / name, filters=filters).to_parquet(out / name, index=False)


def scores(case: Case, data: Path, bundle: Path, as_of_us: int) -> Scores:
    """The scores of the model and of the baselines on the videos published from ``as_of_us`` on."""
    observed = Observed.of(load_dataset(data), case.metric)
    published = observed.data.published_us
    later, past = np.flatnonzero(published >= as_of_us), np.flatnonzero(published < as_of_us)
    asked = (case.ages_h, case.horizons_h)
    queries = cut_queries(observed, later, *asked, observed.data.last_us() or 0, case.tolerance_h)
    known = cut_queries(observed, past, *asked, as_of_us, case.tolerance_h)
    y = queries.pairs.growth
    found = {kind.name: {"nmse": nmse(y, kind().fit(known.pairs).predict(queries.pairs))} for kind in BASELINES}
    with open_bundle(bundle) as forecaster:
        counts = forecast_at(forecaster, observed, queries.video, queries.now_us, queries.horizon_us)
        members = forecaster.manifest.training["members"]
    scored = score(y, np.log2((1 + counts) / (1 + queries.pairs.value_now[:, None])))
    names = ("n", "nmse", "mae", "pinball", "cover", "cover90")
    return found | {MODEL: {name: float(getattr(scored, name)) for name in names}, "members": members}


def measured(name: str, videos: int, seed: int, args: argparse.Namespace) -> Scores:
    """The scores of one draw, computed unless they are known already."""
    case, kind = CASES[name], "test" if args.test else "development"
    kept = args.work / kind / f"{name}-{videos}-{seed}.json"
    if not kept.exists():
        as_of = case.test if args.test else case.development
        before = None if args.test else pd.Timestamp(case.test, tz="UTC")
        with TemporaryDirectory(prefix="m3tr-few-") as temporary:
            data, bundle = Path(temporary) / "data", Path(temporary) / "bundle"
            draw(args.data / case.folder, data, pd.Timestamp(as_of, tz="UTC"), before, videos, seed)
            command = [sys.executable, "-m", "index_builder.cli", "train", str(data), "--as-of", as_of]
            command += ["--metric", case.metric, "--out", str(bundle), "--seed", str(seed)]
            command += ["--config", str(args.config)] if args.config else []
            subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            found = scores(case, data, bundle, parse_time(as_of))
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(found, indent=1), encoding="utf-8")
    return dict(json.loads(kept.read_text(encoding="utf-8")))


def row(name: str, videos: int, drawn: list[Scores]) -> str:
    """One row of the table, from the scores of all draws."""
    of = {method: np.array([one[method]["nmse"] for one in drawn]) for method in drawn[0] if method != "members"}
    best = min((method for method in of if method != MODEL), key=lambda method: float(of[method].mean()))
    quotient = of[MODEL].mean() / of[best].mean()
    error = (
        (of[MODEL] - quotient * of[best]).std(ddof=1) / np.sqrt(len(drawn)) / of[best].mean()
        if len(drawn) > 1
        else np.nan
    )
    cover = np.mean([one[MODEL]["cover"] for one in drawn])
    weight = np.mean([one["members"]["simple"][0] for one in drawn])
    return (
        f"| {name} | {videos:,} | {len(drawn)} | {of[MODEL].mean():.4f} | {best} {of[best].mean():.4f} "
        f"| {quotient:.3f} +- {error:.3f} | {cover:.3f} | {weight:.2f} |"
    )


def table(args: argparse.Namespace) -> Iterable[str]:
    """The rows of the table in Markdown, each as soon as its draws are scored."""
    yield "| set | videos | draws | M3TR nMSE | best simple baseline | quotient | cover | weight of the simple member |"
    yield "|---" * 8 + "|"
    for name in args.sets or CASES:
        for videos in args.videos:
            yield row(name, videos, [measured(name, videos, seed, args) for seed in range(args.draws)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sets", nargs="*", choices=[[], *CASES])
    parser.add_argument("--videos", type=int, nargs="+", default=[100, 250, 1000])
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--test", action="store_true", help="forecast the test period")
    parser.add_argument("--config", type=Path, help="TOML file with training settings")
    parser.add_argument("--work", type=Path, default=Path("build/few"), help="folder that keeps the scores")
    default = Path(os.environ.get("M3TR_TEST_DATA", ROOT.parent / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=default)
    for line in table(parser.parse_args()):
        print(line, flush=True)


if __name__ == "__main__":
    main()
