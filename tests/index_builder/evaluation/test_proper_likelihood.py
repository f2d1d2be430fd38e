"""The probabilities of all possible next tokens sum to 1, for the Mamba-Hawkes process and every baseline."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from typing import Final

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from index_builder.baselines.point_processes import ExponentialHawkes, Means, Pace, log_likelihood
from index_builder.evaluation.likelihood import BASELINES
from index_builder.samples.exposure import BY_COUNTERS, BY_EVENTS, Exposure, exposure
from model.engagement.bins import EDGES_US
from model.engagement.cells import COUNTER_MODE, EVENT_MODE, Cells
from model.features.tokens import Tokens, tokenize
from model.mhp.likelihood import IntensityHead, gap_and_count_logpmf
from model.mhp.pace import pace_rows

Floats = NDArray[np.float64]

FIRST: Final = 200
"""Bin of the first token, at an age of about 9 minutes."""
LAST: Final = 206
"""The bin that is still filling."""
READ: Final = {201: (0, 1), 203: (0,), 205: (0, 1)}
"""The types that are read in later bins, where counters feed the data. One reading lacks the second type."""
COUNTS: Final = 20_000
"""Larger counts have a probability below 1e-6 in these tests."""
DISPERSIONS: Final = (0.13, 0.7, 5.0)


def read(mode: int, sequences: list[NDArray[np.int64]], last: int) -> tuple[Tokens, Exposure]:
    """Sequences of rows (bin, type, value), watched until the bin ``last``."""
    bins, types, values = (np.ascontiguousarray(column) for column in np.concatenate(sequences).T)
    none = np.zeros(len(bins), np.int64)
    offsets = np.cumsum([0, *map(len, sequences)])
    cells = Cells(offsets, bins, types, values, none + mode, none)
    n = len(sequences)
    watched_us = np.full(n, EDGES_US[last])
    tokens = tokenize(cells, np.zeros(n, np.int64), watched_us, 2)
    feed = BY_EVENTS if mode == EVENT_MODE else BY_COUNTERS
    return tokens, exposure(cells, tokens, np.asarray(watched_us * 1e-6, np.float64), [feed] * 2)


def made(mode: int, grown: int | None, new: tuple[int, ...]) -> tuple[Tokens, Exposure]:
    """A sequence whose first token is known. Then nothing happens until bin ``grown``, in which the types ``new`` grow."""
    value = [3, 1]
    rows = [(FIRST, 0, 3), (FIRST, 1, 1)]
    if mode == EVENT_MODE:
        rows += [(grown, k, 1) for k in new if grown is not None]
    else:
        for at, kinds in READ.items():
            if at == grown:
                value = [v + (k in new) for k, v in enumerate(value)]
            rows += [(at, k, value[k]) for k in kinds]
    return read(mode, [np.array(rows, dtype=np.int64)], LAST)


Scores = Callable[[Tokens, Exposure, Floats], Floats]
"""Returns the log-likelihood (m, 2) of the second row of an exposure with each of m pairs of counts (m, 2)."""


def total_probability(mode: int, scores: Scores) -> float:
    """The sum of the probabilities of all that may follow the first token: every count of every later bin, or nothing."""
    tokens, watched = made(mode, None, ())
    assert watched.token.tolist() == [0, -1]
    total = float(np.exp(scores(tokens, watched, np.zeros((1, 2))).sum()))
    for grown in range(FIRST + 1, LAST) if mode == EVENT_MODE else READ:
        kinds = (0, 1) if mode == EVENT_MODE else READ[grown]
        for chosen in product((False, True), repeat=len(kinds)):
            new = [k for k, grows in zip(kinds, chosen, strict=True) if grows]
            if not new:
                continue
            tokens, watched = made(mode, grown, tuple(new))
            assert watched.token.tolist() == [0, 1, -1]
            counts = np.zeros((COUNTS, 2))
            counts[:, new] = np.arange(1, COUNTS + 1)[:, None]
            value = np.exp(scores(tokens, watched, counts))
            # Types are independent, so the sum over all pairs of counts is the product of two sums.
            total += float(np.prod([value[:, k].sum() if k in new else value[0, k] for k in range(2)]))
    return total


def head_with(dispersion: float, log_scale: float) -> IntensityHead:
    """A head with random parameters and one dispersion."""
    torch.manual_seed(1)
    head = IntensityHead(8, 2)
    with torch.no_grad():
        head.start.normal_()
        head.project.weight[6:] = 0
        head.project.bias[6:] = float(np.log(np.expm1(dispersion - 1e-3))) - 1
        head.project.bias[:2] += log_scale / 4
    return head


@pytest.mark.parametrize("mode", [EVENT_MODE, COUNTER_MODE])
@pytest.mark.parametrize("dispersion", DISPERSIONS)
@pytest.mark.parametrize("log_scale", [-2.0, 0.0, 3.0])
def test_the_process_is_a_probability(mode: int, dispersion: float, log_scale: float) -> None:
    head = head_with(dispersion, log_scale)

    def scores(tokens: Tokens, watched: Exposure, counts: Floats) -> Floats:
        at = np.ones(len(counts), np.int64)
        arrays = pace_rows(tokens)[watched.before[at]], watched.previous_s[at], watched.bounds_s[at], counts
        with torch.no_grad():
            value = head.log_likelihood(head.start.expand(len(at), -1), *(torch.from_numpy(a) for a in arrays))
        return np.asarray(value.numpy())

    assert total_probability(mode, scores) == pytest.approx(1, abs=1e-3)


def second_row(
    tokens: Tokens, watched: Exposure, counts: Floats, processes: Sequence[Pace | ExponentialHawkes]
) -> list[Means]:
    """The means of the second row for each type, once for each of the counts."""
    found = [process.means(tokens, watched) for process in processes]
    return [
        Means(np.repeat(means.gap[1], len(counts)), np.repeat(means.active[1], len(counts)), means.dispersion)
        for means in found
    ]


def with_counts(watched: Exposure, counts: Floats) -> Exposure:
    """The second row of an exposure with each of the counts."""
    return replace(watched, bounds_s=np.repeat(watched.bounds_s[1:2], len(counts), axis=0), counts=counts)


def a_past(mode: int) -> tuple[Tokens, Exposure]:
    """Ten videos with some tokens, from which a baseline can be fitted."""
    rng = np.random.default_rng(2)
    sequences = []
    for values in np.cumsum(rng.poisson(2.0, (10, 60)) + 1, axis=1):
        bins = np.repeat(np.sort(rng.choice(220, 30, replace=False)), 2)
        sequences.append(np.stack([bins, np.tile([0, 1], 30), values], axis=1))
    return read(mode, sequences, 221)


@pytest.mark.parametrize("mode", [EVENT_MODE, COUNTER_MODE])
@pytest.mark.parametrize("name", BASELINES)
def test_every_baseline_is_a_probability(mode: int, name: str) -> None:
    processes = [BASELINES[name](k).fit(*a_past(mode)) for k in range(2)]
    for dispersion, factor in product(DISPERSIONS, (0.05, 1.0, 3.0)):

        def scores(
            tokens: Tokens, watched: Exposure, counts: Floats, r: float = dispersion, factor: float = factor
        ) -> Floats:
            rows = with_counts(watched, counts)
            means = second_row(tokens, watched, counts, processes)
            mixed = [m if np.isinf(m.dispersion) else m.scaled(factor, r) for m in means]
            return np.stack([log_likelihood(rows, k, m) for k, m in enumerate(mixed)], axis=1)

        assert total_probability(mode, scores) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("dispersion", [0.13, 0.7])
def test_independent_factors_for_gap_and_interval_are_no_probability(dispersion: float) -> None:
    """The sum finds that the gap and the interval share one random factor."""
    process = BASELINES["negative binomial"](0).fit(*a_past(EVENT_MODE))
    r = torch.tensor(dispersion, dtype=torch.float64)

    def scores(tokens: Tokens, watched: Exposure, counts: Floats) -> Floats:
        (means,) = second_row(tokens, watched, counts, [process])
        gap, active = torch.from_numpy(20 * means.gap), torch.from_numpy(20 * means.active)
        count, zero = torch.from_numpy(counts[:, 0]), torch.zeros_like(gap)
        value = gap_and_count_logpmf(zero, gap, zero, r) + gap_and_count_logpmf(count, zero, active, r)
        return np.stack([value.numpy(), np.where(counts[:, 1] == 0, 0.0, -np.inf)], axis=1)

    assert total_probability(EVENT_MODE, scores) > 1.2
