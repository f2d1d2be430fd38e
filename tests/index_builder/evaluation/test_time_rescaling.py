"""Time rescaling: a true intensity expects what happens, and a wrong one does not."""

from __future__ import annotations

import copy
from itertools import chain, pairwise
from typing import Final

import numpy as np
import pytest
import torch

from index_builder.evaluation.intensity_calibration import calibrate_intensity
from index_builder.evaluation.time_rescaling import Rescaled, expected_counts, rescaled, windows
from index_builder.samples.exposure import BY_COUNTERS, BY_EVENTS, Exposure, exposure
from model.engagement.bins import EDGES_US
from model.engagement.cells import COUNTER_MODE, EVENT_MODE, Cells
from model.features.tokens import LOG_AGE_OFFSET_S, Tokens, n_features, tokenize
from model.mhp.likelihood import IntensityHead, gap_and_count_logpmf, softplus_integral
from model.mhp.network import MambaHawkes
from model.mhp.pace import MEMORIES
from model.mhp.shape import MHPShape

VIDEOS: Final = 600
LAST: Final = 400
"""The bin in which observation ends, at an age of about 3 hours."""
TYPES: Final = ("view", "share")


@pytest.fixture(scope="module")
def head() -> IntensityHead:
    """An intensity that depends on the age at the newest token only. Counts are over-dispersed."""
    torch.manual_seed(0)
    head = IntensityHead(8, 2)
    with torch.no_grad():
        head.project.weight.zero_()
        head.exponents.zero_()
        head.project.bias.copy_(torch.tensor([0.6, -0.1, 0.3, -0.5, -2.0, 0.5, -0.7, 0.3]))
    return head


def simulated(head: IntensityHead, mode: int, seed: int = 1) -> tuple[Tokens, Exposure]:
    """Videos that follow the intensity of ``head``, bin by bin. Each token draws new random factors."""
    rng = np.random.default_rng(seed)
    with torch.no_grad():
        log_scale, c, alpha, dispersion = head(torch.zeros(8), torch.zeros(2, len(MEMORIES), 2), torch.zeros(()))
    r = dispersion.numpy().astype(np.float64)
    previous, factor = np.zeros(VIDEOS), rng.gamma(r, 1 / r, (VIDEOS, 2))
    total = np.zeros((VIDEOS, 2), np.int64)
    rows: list[list[tuple[int, int, int]]] = [[] for _ in range(VIDEOS)]
    for at, edges_us in enumerate(pairwise(EDGES_US[: LAST + 1])):
        clock = [
            torch.from_numpy((edge * 1e-6 - previous) / (previous + LOG_AGE_OFFSET_S))[:, None] for edge in edges_us
        ]
        mean = (torch.exp(log_scale.double()) * softplus_integral(alpha, c, *clock)).numpy()
        counts = rng.poisson(mean * factor)
        total += counts
        grown = counts.any(1)
        for v in range(VIDEOS) if mode == COUNTER_MODE else np.flatnonzero(grown).tolist():
            values = total[v] if mode == COUNTER_MODE else counts[v]
            rows[v] += [(at, k, int(values[k])) for k in range(2) if mode == COUNTER_MODE or values[k]]
        previous[grown] = edges_us[1] * 1e-6
        factor[grown] = rng.gamma(r, 1 / r, (int(grown.sum()), 2))
    bins, types, values = (np.ascontiguousarray(column) for column in np.array(list(chain.from_iterable(rows))).T)
    none = np.zeros(len(bins), np.int64)
    cells = Cells(np.cumsum([0, *map(len, rows)]), bins, types, values, none + mode, none)
    watched_us = np.full(VIDEOS, EDGES_US[LAST])
    tokens = tokenize(cells, np.zeros(VIDEOS, np.int64), watched_us, 2)
    feed = BY_EVENTS if mode == EVENT_MODE else BY_COUNTERS
    return tokens, exposure(cells, tokens, np.asarray(watched_us * 1e-6, np.float64), [feed] * 2)


def ratios(head: IntensityHead, rows: Exposure) -> list[Rescaled]:
    m, found = len(rows.counts), windows(rows)
    expected = expected_counts(head, torch.zeros(m, 8), torch.zeros(m, 2, len(MEMORIES), 2), rows, found)
    return rescaled(rows, found, expected, TYPES)


@pytest.mark.parametrize("mode", [EVENT_MODE, COUNTER_MODE])
def test_a_true_intensity_expects_what_happens(head: IntensityHead, mode: int) -> None:
    _, rows = simulated(head, mode)
    found = ratios(head, rows)
    assert [(row.type, row.from_h) for row in found] == [(name, age) for name in TYPES for age in (None, 0.0, 1.0)]
    for row in found:
        assert 0.9 < row.ratio < 1.1 and row.low < 1 < row.high
    with torch.no_grad():
        head.project.bias[1] += 0.1
        wrong = ratios(head, rows)
        head.project.bias[1] -= 0.1
    for row in wrong:
        assert (row.low > 1.05) if row.type == "share" else (0.95 < row.ratio < 1.05)


def test_a_wrong_intensity_is_calibrated(head: IntensityHead) -> None:
    """The sums are right on other videos afterwards, also where the dispersion is wrong."""
    wrong = copy.deepcopy(head)
    with torch.no_grad():
        wrong.project.bias[:2] += torch.tensor([0.1, -0.15])
        wrong.project.bias[6:] += 0.5
    network = MambaHawkes(MHPShape(n_features(2), 2, 8, 1)).eval()
    learned, held, other = (simulated(head, EVENT_MODE, seed) for seed in (2, 3, 4))
    assert any(not 0.8 < row.ratio < 1.25 for row in ratios(wrong, other[1]))
    calibrate_intensity(network, wrong, [learned, held])
    assert all(0.9 < row.ratio < 1.1 for row in ratios(wrong, other[1]))


def test_windows_and_rows_have_the_same_likelihood(head: IntensityHead) -> None:
    """A row is the product of its windows: nothing in each window of the gap, then the count."""
    _, rows = simulated(head, EVENT_MODE)
    m, found = len(rows.counts), windows(rows)
    assert found.counts.sum() == rows.counts.sum()
    with torch.no_grad():
        state, pace = torch.zeros(m, 8), torch.zeros(m, 2, len(MEMORIES), 2)
        arrays = [torch.from_numpy(a) for a in (rows.previous_s, rows.bounds_s, rows.counts)]
        whole = head.log_likelihood(state, pace, *arrays).numpy()
        log_scale, c, alpha, dispersion = (
            value[torch.from_numpy(found.kind)] for value in head(state[0], pace[0], torch.zeros(()))
        )
        previous = rows.previous_s[found.row][:, None]
        clock = torch.from_numpy((found.bounds_s - previous) / (previous + LOG_AGE_OFFSET_S))
        gap, active = (
            torch.exp(log_scale.double()) * softplus_integral(alpha, c, clock[:, i], clock[:, i + 1]) for i in range(2)
        )
        # Given an empty gap, the probability of a window is that of gap and window over that of the gap alone.
        count = torch.from_numpy(found.counts)
        zero = torch.zeros_like(gap)
        parts = gap_and_count_logpmf(count, gap, active, dispersion) - gap_and_count_logpmf(zero, gap, zero, dispersion)
    summed = np.zeros_like(whole)
    np.add.at(summed, (found.row, found.kind), parts.numpy())
    np.testing.assert_allclose(summed, whole, atol=1e-6)
