"""What the default bins lose compared with single events.

    python -m benchmarks.forecasts.bins [--data FOLDER] [--parts 64] [--epochs 3] [--videos N]

Trains the same model twice: on the default grid of ages, and on a grid with every bin split into equal parts of at least a second,
which is so fine that a bin nearly always holds one event. The constant of the format does not change: the finer grid is set in this
process only, and its bundle is deleted.

Likelihoods per token of two grids are not comparable, because the tokens differ. So both models forecast the same: the counts of the
*default* intervals of later videos, and the silence before them, each given what was known at the end of the interval before. The fine
model reads its fine tokens up to that time, and its mean is the integral of its intensity over the same gap and interval. Fine bins
are nested in default ones, so both models have read the same events. A dispersion learned on narrow intervals is too large or small
for wide ones, so both models get a factor on means and one on dispersions, fitted on training videos. Forecast errors are of growth at
ages of 1 and 6 h, for horizons of 24 and 72 h, from events up to `now`.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import torch

import model.engagement.rows
import model.features.tokens
from index_builder.bundles.forecast import forecast_at
from index_builder.bundles.open_bundle import open_bundle
from index_builder.cli import parse_time
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.process_states import intensity_of, network_of, states_after, tokens_of
from index_builder.samples.queries import cut_queries
from index_builder.scoring.metrics import score
from index_builder.training.train import train
from model.bundle import Bundle, load_bundle
from model.engagement.bins import EDGES_US, SECOND_US
from model.features.tokens import Tokens
from model.mhp.likelihood import gap_and_count_logpmf
from model.mhp.pace import pace_rows

LEARNED_ON = 300
FACTORS = np.geomspace(0.5, 2, 13), np.geomspace(0.2, 5, 13)


def split_edges(parts: int) -> np.ndarray:
    """The default edges with every bin split into ``parts``, or into fewer parts where they would be shorter than a second."""
    pieces = []
    for low, high in zip(EDGES_US[:-1].tolist(), EDGES_US[1:].tolist(), strict=True):
        n = max(1, min(parts, (high - low) // SECOND_US))
        pieces += [low + (high - low) * i // n for i in range(n)]
    return np.array([*pieces, EDGES_US[-1]], dtype=np.int64)


@contextmanager
def grid(edges: np.ndarray) -> Iterator[None]:
    """Use another grid for cells and tokens inside the block."""
    rows, tokens = model.engagement.rows, model.features.tokens
    with patch.object(rows, "EDGES_US", edges), patch.object(tokens, "EDGES_US", edges):
        yield


def newest(data: Path, as_of_us: int, videos: int, out: Path) -> Path:
    """The data set with the ``videos`` newest of the videos published by ``as_of_us``, and all later ones."""
    table = pq.read_table(data / "videos.parquet")
    published = table["published_at"].cast(pa.timestamp("us", "UTC"), safe=False).cast(pa.int64()).to_numpy()
    past = np.sort(published[published <= as_of_us])
    kept = table.filter(pa.array(published >= past[-min(videos, len(past))]))
    events = pq.read_table(data / "events.parquet")
    out.mkdir()
    pq.write_table(kept, out / "videos.parquet")
    pq.write_table(
        events.filter(pc.is_in(events["video_id"], kept["video_id"].combine_chunks())), out / "events.parquet"
    )
    return out


@torch.no_grad()
def expected(bundle: Bundle, own: Tokens, asked: Tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Means in gap and interval of ``asked`` (n, K), and dispersions, from the states after the ``own`` tokens."""
    head = intensity_of(bundle)
    hidden = torch.cat([states_after(network_of(bundle), own), head.start[None]])
    pace = torch.from_numpy(pace_rows(own))
    last = np.full(len(asked.counts), len(own.counts))
    for v in range(len(asked.offsets) - 1):
        mine, theirs = slice(*own.offsets[v : v + 2]), slice(*asked.offsets[v : v + 2])
        # A token is past if it ended before the end of the interval before this one.
        n = np.searchsorted(own.interval_s[mine, 2], asked.interval_s[theirs, 0] + 1e-6, side="right")
        last[theirs] = np.where(n > 0, own.offsets[v] + n - 1, len(own.counts))
    ends = torch.from_numpy(np.append(own.interval_s[:, 2], 0.0)[last])
    state, so_far = hidden[torch.from_numpy(last)], pace[torch.from_numpy(last)]
    bounds = torch.from_numpy(asked.interval_s).unsqueeze(1).expand(-1, head.n_types, -1)
    gap, active, dispersion = head.integrals(state, so_far, ends, bounds)
    return gap, active, dispersion


def value(asked: Tokens, means: tuple[torch.Tensor, torch.Tensor, torch.Tensor], mean: float, wide: float) -> float:
    """Log-likelihood per token and type of ``asked``, without silences, with means and dispersions multiplied by factors."""
    gap, active, dispersion = means[0] * mean, means[1] * mean, means[2].double() * wide
    counts = torch.from_numpy(asked.counts)
    total = gap_and_count_logpmf(counts, gap, active, dispersion)
    return float(total[torch.from_numpy(asked.observed)].mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(os.environ.get("M3TR_TEST_DATA", "../shared/data"))
    parser.add_argument("--data", type=Path, default=default / "weibo_ced")
    parser.add_argument(
        "--as-of", type=parse_time, default="2013-06-01", help="train on what was known then, score later"
    )
    parser.add_argument("--parts", type=int, default=64, help="parts of a default bin; 64 are 1/4096 of the age")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--videos", type=int, default=10**9, help="train on so many of the newest videos only")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    args = parser.parse_args()
    as_of = args.as_of if isinstance(args.as_of, int) else parse_time(args.as_of)
    with TemporaryDirectory(prefix="m3tr-bins-") as temporary:
        data = newest(args.data, as_of, args.videos, Path(temporary) / "data")
        observed = Observed.of(load_dataset(data), "total")
        published = observed.data.published_us
        held, past = np.flatnonzero(published > as_of), np.flatnonzero(published <= as_of)[-LEARNED_ON:]
        end = observed.data.last_us() or 0
        asked, learned = tokens_of(observed, held, end), tokens_of(observed, past, as_of)
        queries = cut_queries(observed, held, (1.0, 6.0), (24.0, 72.0), end)
        y, now = queries.pairs.growth, queries.pairs.value_now
        print(
            f"{len(past)} videos for the two factors, {len(held)} held out, {len(asked.counts):,} default tokens",
            flush=True,
        )
        print(
            f"{'grid':<10}{'seed':>5}{'tokens':>11}{'log-lik.':>10}{'nMSE':>9}{'pinball':>9}{'train, s':>10}",
            flush=True,
        )
        for seed, (name, edges) in product(args.seeds, (("default", EDGES_US), ("fine", split_edges(args.parts)))):
            folder = Path(temporary) / f"{name}{seed}"
            with grid(edges):
                began = time.perf_counter()
                train(data, as_of_us=as_of, metric="total", out=folder, epochs=args.epochs, seed=seed)
                took = time.perf_counter() - began
                own, own_learned = tokens_of(observed, held, end), tokens_of(observed, past, as_of)
                with open_bundle(folder) as forecaster:
                    counts = forecast_at(forecaster, observed, queries.video, queries.now_us, queries.horizon_us)
            bundle = load_bundle(folder)
            fitted = expected(bundle, own_learned, learned)
            factors = max(product(*FACTORS), key=lambda f: value(learned, fitted, *f))
            likelihood = value(asked, expected(bundle, own, asked), *factors)
            growth = np.log2((1 + counts) / (1 + now[:, None]))
            s = score(y, growth)
            print(
                f"{name:<10}{seed:>5}{len(own.counts):>11,}{likelihood:>10.4f}{s.nmse:>9.4f}{s.pinball:>9.4f}{took:>10.0f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
