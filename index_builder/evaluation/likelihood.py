"""Log-likelihood per token and type on later videos, for the bundle's Mamba-Hawkes process and simple point processes.

All point processes are scored on the same tokens of the same videos. A token covers a gap without engagement and the
interval after the gap. The likelihood of a token is the probability that nothing happens in the gap and that the
token's counts occur in the interval. A type is scored only in tokens from its first observation on. The simple point
processes are the baselines. They are fitted on earlier videos, from what was observed before the first scored video was
published.
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
from torch import Tensor, nn

from index_builder.baselines.point_processes import ExponentialHawkes, Pace
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.progress import progress
from model.bundle import Bundle, load_bundle
from model.engagement.rows import cells_at
from model.errors import DataError
from model.features.tokens import Tokens, tokenize
from model.mhp.likelihood import IntensityHead
from model.mhp.network import MambaHawkes
from model.mhp.pace import pace_before

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
    """Mean log-likelihood per token and type in nats, with its 95 % interval from a bootstrap over videos.

    ``tokens`` is the number of scored tokens.
    """

    mean: float
    low: float
    high: float
    tokens: int


def tokens_of(observed: Observed, videos: NDArray[np.int64], until_us: int) -> Tokens:
    """Return the tokens of ``videos`` from rows up to ``until_us``."""
    published = observed.data.published_us[videos]
    now = np.maximum(until_us, published)
    n_types = len(observed.data.types)
    cells = cells_at(observed.events, observed.counters, videos, now, published, n_types)
    return tokenize(cells, published, now, n_types)


def _module(bundle: Bundle, prefix: str, module: nn.Module) -> None:
    state = {n.removeprefix(prefix): torch.from_numpy(w) for n, w in bundle.weights.items() if n.startswith(prefix)}
    module.load_state_dict(state)


def intensity_of(bundle: Bundle) -> IntensityHead:
    """Return the bundle's intensity head."""
    head = IntensityHead(bundle.manifest.shape.d_model, bundle.manifest.shape.n_types)
    _module(bundle, "intensity.", head)
    return head


@torch.no_grad()
def states_after(bundle: Bundle, tokens: Tokens) -> Tensor:
    """Return the hidden state (n, d_model) of the bundle's Mamba-Hawkes process after each token."""
    shape = bundle.manifest.shape
    mhp = MambaHawkes(shape)
    _module(bundle, "mhp.", mhp)
    lengths = np.diff(tokens.offsets)
    order = np.argsort(lengths, kind="stable")
    out = torch.zeros(len(tokens.counts), shape.d_model)
    at = int(np.searchsorted(lengths[order], 1))
    while at < len(order):
        # Videos are sorted by length, so the last video of a batch is the longest.
        stop = at + 1
        while stop < len(order) and lengths[order[stop]] * (stop + 1 - at) <= _BATCH_TOKENS:
            stop += 1
        part = order[at:stop]
        step = np.arange(lengths[part].max())[:, None]
        index = tokens.offsets[part][None] + np.minimum(step, lengths[part] - 1)
        none = torch.zeros(len(part), 1, 2, shape.n_features)
        hidden, _ = mhp(
            torch.from_numpy(tokens.features[index]),
            torch.from_numpy(tokens.clock[index]),
            torch.zeros(len(part), 1, dtype=torch.int64),
            none,
            none[..., :2],
            torch.zeros(len(part), 1, dtype=torch.bool),
        )
        real = step < lengths[part]
        out[torch.from_numpy(index[real])] = hidden[torch.from_numpy(real)]
        at = stop
    return out


@torch.no_grad()
def mhp_log_likelihood(bundle: Bundle, tokens: Tokens) -> NDArray[np.float64]:
    """Return the log-likelihood (n, K) of every token and type under the bundle's Mamba-Hawkes process.

    The log-likelihood is NaN where a type is not observed yet.
    """
    head = intensity_of(bundle)
    before = torch.roll(states_after(bundle, tokens), 1, 0)
    before[torch.from_numpy(tokens.offsets[:-1][np.diff(tokens.offsets) > 0])] = head.start
    previous, start, end = (torch.from_numpy(np.ascontiguousarray(column)) for column in tokens.interval_s.T)
    pace = torch.from_numpy(pace_before(tokens))
    value = head.log_likelihood(before, pace, previous, start, end, torch.from_numpy(tokens.counts)).numpy()
    return np.where(tokens.observed, value, np.nan)


def baseline_log_likelihood(name: str, learned: Tokens, tokens: Tokens) -> NDArray[np.float64]:
    """Return the log-likelihood (n, K) of ``tokens`` under the baseline ``name``, which is fitted on the tokens ``learned``.

    ``name`` is one of BASELINES.
    """
    kinds = range(tokens.counts.shape[1])
    return np.stack([BASELINES[name](k).fit(learned).log_likelihood(tokens) for k in kinds], axis=1)


def likelihoods(
    bundle: Bundle,
    observed: Observed,
    *,
    published_from_us: int,
    published_before_us: int | None = None,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> dict[str, Likelihood]:
    """Score the Mamba-Hawkes process and the baselines on videos published in [published_from, published_before).

    The rows of these videos up to the end of the data are used. ``advance`` is called with 1 after the Mamba-Hawkes
    process and after each baseline. Return one ``Likelihood`` per process, keyed by name.

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
    tokens = tokens_of(observed, np.flatnonzero(held), observed.data.last_us() or 0)
    learned = tokens_of(observed, past, published_from_us)
    for name, found in (("from", tokens), ("before", learned)):
        if not len(found.counts):
            raise DataError(
                f"published-from: no video published {name} this time has an engagement; "
                "allowed: a time with such videos before and after it"
            )
    table = {}
    for name in ("M3TR", *BASELINES):
        values = (
            mhp_log_likelihood(bundle, tokens) if name == "M3TR" else baseline_log_likelihood(name, learned, tokens)
        )
        table[name] = _summary(tokens, values, seed)
        if advance:
            advance(1)
    return table


def _summary(tokens: Tokens, values: NDArray[np.float64], seed: int) -> Likelihood:
    """Return the mean of ``values`` with its 95 % interval.

    The bootstrap draws whole videos with replacement, because the errors of one video's tokens are correlated.
    """
    owner = np.repeat(np.arange(len(tokens.offsets) - 1), np.diff(tokens.offsets))
    known = np.isfinite(values)
    total = np.bincount(owner, np.where(known, values, 0).sum(1), len(tokens.offsets) - 1)
    count = np.bincount(owner, known.sum(1), len(tokens.offsets) - 1)
    pick = np.random.default_rng(seed).integers(0, len(total), (_DRAWS, len(total)))
    low, high = np.quantile(total[pick].sum(1) / count[pick].sum(1), (0.025, 0.975))
    return Likelihood(float(total.sum() / count.sum()), float(low), float(high), len(values))


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
        table = likelihoods(
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
    Console(width=120 if not Console().is_terminal else None).print(shown)
    return table
