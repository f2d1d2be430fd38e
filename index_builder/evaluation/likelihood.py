"""Log-likelihood per token and type on later videos, for the bundle's Mamba-Hawkes process and simple point processes.

All point processes are scored on the same tokens of the same videos. A token covers a gap without engagement and the
interval after the gap. The likelihood of a token is the probability that nothing happens in the gap and that the
token's counts occur in the interval. The silence after a video's last token is scored like a gap. So the probabilities
of all that may happen next sum to 1. ``index_builder.samples.exposure`` defines which types are scored in which tokens.
The simple point processes are the baselines. They are fitted on earlier videos, from what was observed before the first
scored video was published.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from index_builder.baselines.point_processes import ExponentialHawkes, Pace, log_likelihood
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.process_states import before_rows, intensity_of, network_of, scored_rows
from index_builder.evaluation.time_rescaling import Rescaled, expected_counts, rescaled, windows
from index_builder.progress import progress
from index_builder.samples.exposure import Exposure, oldest_us
from model.bundle import Bundle, load_bundle
from model.errors import DataError
from model.features.tokens import Tokens

FIT_VIDEOS: Final = 600
"""Maximum number of videos that the baselines are fitted on."""
_BATCH_TOKENS: Final = 20_000
_DRAWS: Final = 200
BASELINES: Final[dict[str, Callable[[int], Pace | ExponentialHawkes]]] = {
    "Poisson": lambda kind: Pace(kind, overdispersed=False),
    "negative binomial": lambda kind: Pace(kind, overdispersed=True),
    "exponential Hawkes": lambda kind: ExponentialHawkes(kind, overdispersed=False),
    "exponential Hawkes, over-dispersed": lambda kind: ExponentialHawkes(kind, overdispersed=True),
}


@dataclass(frozen=True, slots=True)
class Likelihood:
    """Log-likelihood per token and type in nats, silences included, with its 95 % interval from a bootstrap over videos.

    ``tokens`` is the number of scored tokens.
    """

    mean: float
    low: float
    high: float
    tokens: int


@torch.no_grad()
def mhp_log_likelihood(bundle: Bundle, tokens: Tokens, exposure: Exposure) -> NDArray[np.float64]:
    """Return the log-likelihood (m, K) of every row and type under the bundle's Mamba-Hawkes process.

    The log-likelihood is 0 where a type is not scored.
    """
    arrays = (exposure.previous_s, exposure.bounds_s, exposure.counts)
    head = intensity_of(bundle)
    value = head.log_likelihood(
        *before_rows(network_of(bundle), head, tokens, exposure), *(torch.from_numpy(array) for array in arrays)
    )
    return np.asarray(value.numpy())


def baseline_log_likelihood(
    name: str, learned: tuple[Tokens, Exposure], asked: tuple[Tokens, Exposure]
) -> NDArray[np.float64]:
    """Return the log-likelihood (m, K) of the rows of ``asked`` under the baseline ``name``, which is fitted on ``learned``.

    ``name`` is one of BASELINES. The log-likelihood is 0 where a type is not scored.
    """
    kinds = range(asked[1].counts.shape[1])
    return np.stack(
        [log_likelihood(asked[1], k, BASELINES[name](k).fit(*learned).means(*asked)) for k in kinds], axis=1
    )


def likelihoods(
    bundle: Bundle,
    observed: Observed,
    *,
    published_from_us: int,
    published_before_us: int | None = None,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> tuple[dict[str, Likelihood], list[Rescaled]]:
    """Score the Mamba-Hawkes process and the baselines on videos published in [published_from, published_before).

    The rows of these videos are used up to the end of the data, and up to the age ``oldest_us`` of the bundle's schema.
    ``advance`` is called with 1 after the Mamba-Hawkes process and after each baseline.

    Returns:
        One ``Likelihood`` per process, keyed by name, and the time rescaling of the Mamba-Hawkes process.

    Raises:
        DataError: the bundle has no Mamba-Hawkes process, its types differ from the data set's types, or there is no
            token before or after ``published_from_us``.
    """
    if not bundle.manifest.parts.mhp:
        raise DataError("likelihood: this bundle was trained without the Mamba-Hawkes process (use_mhp = false)")
    if observed.data.types != bundle.manifest.types:
        raise DataError(
            f"data: has the types {', '.join(observed.data.types)}; allowed: those of the training, {', '.join(bundle.manifest.types)}"
        )
    published = observed.data.published_us
    held = published >= published_from_us
    if published_before_us is not None:
        held &= published < published_before_us
    past = np.flatnonzero(published < published_from_us)
    if len(past) > FIT_VIDEOS:
        past = np.sort(np.random.default_rng(seed).choice(past, FIT_VIDEOS, replace=False))
    until_us, max_age_us = observed.data.last_us() or 0, oldest_us(bundle.manifest.schema)
    asked = scored_rows(observed, np.flatnonzero(held), until_us, max_age_us)
    learned = scored_rows(observed, past, published_from_us, max_age_us)
    for name, found in (("from", asked), ("before", learned)):
        if not found[1].n_counts:
            raise DataError(
                f"published-from: no video published {name} this time has an engagement; "
                "allowed: a time with such videos before and after it"
            )
    table = {}
    for name in ("M3TR", *BASELINES):
        values = mhp_log_likelihood(bundle, *asked) if name == "M3TR" else baseline_log_likelihood(name, learned, asked)
        table[name] = _summary(asked[1], values, seed)
        if advance:
            advance(1)
    return table, time_rescaling(bundle, *asked, seed=seed)


def time_rescaling(bundle: Bundle, tokens: Tokens, exposure: Exposure, *, seed: int = 0) -> list[Rescaled]:
    """Return the expected over the real counts of the bundle's process, by type and age."""
    found = windows(exposure)
    head = intensity_of(bundle)
    expected = expected_counts(head, *before_rows(network_of(bundle), head, tokens, exposure), exposure, found)
    return rescaled(exposure, found, expected, bundle.manifest.types, seed=seed)


def _summary(exposure: Exposure, values: NDArray[np.float64], seed: int) -> Likelihood:
    """Return the sum of ``values`` per scored count, with its 95 % interval.

    The bootstrap draws whole videos with replacement, because the errors of one video's tokens are correlated.
    """
    n_videos = len(exposure.offsets) - 1
    owner = np.repeat(np.arange(n_videos), np.diff(exposure.offsets))
    total = np.bincount(owner, values.sum(1), n_videos)
    is_token = exposure.token >= 0
    count = np.bincount(owner, exposure.scored.sum(1) * is_token, n_videos)
    pick = np.random.default_rng(seed).integers(0, n_videos, (_DRAWS, n_videos))
    low, high = np.quantile(total[pick].sum(1) / np.maximum(count[pick].sum(1), 1), (0.025, 0.975))
    return Likelihood(float(total.sum() / count.sum()), float(low), float(high), int(is_token.sum()))


def score_likelihood(
    bundle: Path, data: Path, *, published_from_us: int, published_before_us: int | None = None
) -> dict[str, Likelihood]:
    """Compute ``likelihoods``, print the table and return it.

    Raises:
        DataError: see ``likelihoods``.
    """
    loaded = load_bundle(bundle)
    observed = Observed.of(load_dataset(data), loaded.manifest.metric)
    with progress("log-likelihood", 1 + len(BASELINES)) as bar:
        table, ratios = likelihoods(
            loaded,
            observed,
            published_from_us=published_from_us,
            published_before_us=published_before_us,
            advance=bar.advance,
        )
    shown = Table(title="Held-out log-likelihood per token and type, nats; higher is better")
    for name in ("process", "mean", "95 % by video", "tokens"):
        shown.add_column(name, justify="left" if name == "process" else "right")
    for name, row in sorted(table.items(), key=lambda item: -item[1].mean):
        shown.add_row(name, f"{row.mean:,.4f}", f"{row.low:,.3f} to {row.high:,.3f}", f"{row.tokens:,}")
    console = Console(width=120 if not Console().is_terminal else None)
    console.print(shown)
    console.print(_ratio_table(ratios))
    return table


def _ratio_table(ratios: list[Rescaled]) -> Table:
    shown = Table(title="Time rescaling: expected over real counts of M3TR, which should be 1")
    for name in ("type", "age", "expected", "counted", "ratio", "95 % by video"):
        shown.add_column(name, justify="left" if name in ("type", "age") else "right")
    for row in ratios:
        age = "all" if row.from_h is None else f"from {row.from_h:g} h"
        interval = f"{row.low:,.3f} to {row.high:,.3f}"
        shown.add_row(row.type, age, f"{row.expected:,.0f}", f"{row.counted:,.0f}", f"{row.ratio:,.3f}", interval)
    return shown
