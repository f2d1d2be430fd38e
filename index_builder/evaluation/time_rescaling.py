"""Time rescaling: the engagement that a process expects, over the engagement that happened, by type and age.

Every bin or reading interval in which a count was observed is one window, whether something happened or not. In each
window, the process expects a count given everything before the window, the empty gap before it included. If the
intensity is right, the expected and the real counts have the same sum for every type and every range of ages. The sum
over the windows up to an age is the compensator of the process. Silences after the last token are included.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_builder.samples.exposure import BY_EVENTS, Exposure
from model.engagement.bins import EDGES_US
from model.engagement.cells import COUNTER_MODE
from model.features.tokens import LOG_AGE_OFFSET_S
from model.mhp.likelihood import IntensityHead, mean_after_gap, softplus_integral

AGES_H: Final = (0.0, 1.0, 6.0, 24.0, 72.0, 168.0)
"""Starts of the ranges of ages, in hours. The last range has no end."""
_DRAWS: Final = 200
_ROWS: Final = 500_000


@dataclass(frozen=True, slots=True)
class Windows:
    """W windows of the rows of an ``Exposure``, in the order of the rows.

    Attributes:
        row: (W,) int64, row of the exposure in which the window lies.
        kind: (W,) int64, index of the type.
        bounds_s: (W, 3) float64, age in seconds at the start of the row's gap, the start of the window, and its end.
        counts: (W,) float64, counts of the windows.
    """

    row: NDArray[np.int64]
    kind: NDArray[np.int64]
    bounds_s: NDArray[np.float64]
    counts: NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rescaled:
    """Expected and real counts of one type in one range of ages, and their ratio with a 95 % interval by video.

    ``from_h`` is the start of the range in hours. It is None for all ages together.
    """

    type: str
    from_h: float | None
    expected: float
    counted: float
    ratio: float
    low: float
    high: float


def windows(exposure: Exposure) -> Windows:
    """Return the windows of all rows."""
    cells = exposure.cells
    arguments = (
        EDGES_US * 1e-6,
        cells.offsets,
        cells.bins,
        cells.types,
        cells.modes,
        exposure.offsets,
        exposure.bounds_s,
        exposure.counts,
        exposure.fed,
    )
    none = np.zeros(0, np.int64)
    size = _fill_windows(*arguments, False, none, none, np.zeros((0, 3)), np.zeros(0))
    row, kind, bounds, counts = np.zeros(size, np.int64), np.zeros(size, np.int64), np.zeros((size, 3)), np.zeros(size)
    _fill_windows(*arguments, True, row, kind, bounds, counts)
    return Windows(row, kind, bounds, counts)


@numba.njit(cache=True)
def _fill_windows(  # type: ignore[no-untyped-def]
    edges, offsets, bins, types, modes, row_offsets, bounds_s, row_counts, fed, fills, row, kind, out, counts
):
    n_types = len(fed)
    at = 0
    for s in range(len(offsets) - 1):
        for k in range(n_types):
            if fed[k] == BY_EVENTS:
                cuts = edges
            else:
                mine = [
                    edges[bins[i] + 1]
                    for i in range(offsets[s], offsets[s + 1])
                    if types[i] == k and modes[i] == COUNTER_MODE
                ]
                cuts = np.array(mine)
            for r in range(row_offsets[s], row_offsets[s + 1]):
                first, gap_end, end = bounds_s[r, k]
                if np.isnan(first):
                    continue
                c = np.searchsorted(cuts, first, side="right")
                low = first
                while low < end:
                    high = gap_end if low < gap_end else end
                    if low < gap_end and c < len(cuts) and cuts[c] < gap_end:
                        high = cuts[c]
                        c += 1
                    if fills:
                        row[at] = r
                        kind[at] = k
                        out[at, 0] = first
                        out[at, 1] = low
                        out[at, 2] = high
                        counts[at] = row_counts[r, k] if high == end and end > gap_end else 0.0
                    at += 1
                    low = high
    return at


@torch.no_grad()
def window_integrals(
    head: IntensityHead, states: Tensor, pace: Tensor, exposure: Exposure, found: Windows
) -> NDArray[np.float64]:
    """Return (3, W) float64: the integrals of the intensity over the gap before each window and over it, and the dispersion.

    Args:
        head: the intensity head.
        states: (m, d_model) state before each row of the exposure.
        pace: (m, K, len(MEMORIES), 2) pace before each row.
        exposure: m rows.
        found: the windows of these rows.
    """
    log_scale, c, alpha, dispersion = head(states, pace, torch.from_numpy(exposure.previous_s))
    out = np.zeros((3, len(found.row)))
    for start in range(0, out.shape[1], _ROWS):
        part = slice(start, start + _ROWS)
        row, kind = torch.from_numpy(found.row[part]), torch.from_numpy(found.kind[part])
        previous = exposure.previous_s[found.row[part]][:, None]
        clock = torch.from_numpy((found.bounds_s[part] - previous) / (previous + LOG_AGE_OFFSET_S))
        for i in range(2):
            integral = softplus_integral(alpha[row, kind], c[row, kind], clock[:, i], clock[:, i + 1])
            out[i, part] = (torch.exp(log_scale[row, kind]) * integral).numpy()
        out[2, part] = dispersion[row, kind].numpy()
    return out


def expected_counts(
    head: IntensityHead, states: Tensor, pace: Tensor, exposure: Exposure, found: Windows
) -> NDArray[np.float64]:
    """Return the expected count (W,) of each window, given that the row's gap is empty up to the window.

    The arguments are those of ``window_integrals``.
    """
    gap, active, dispersion = torch.from_numpy(window_integrals(head, states, pace, exposure, found))
    return np.asarray(mean_after_gap(gap, active, dispersion).numpy())


def rescaled(
    exposure: Exposure, found: Windows, expected: NDArray[np.float64], types: tuple[str, ...], *, seed: int = 0
) -> list[Rescaled]:
    """Return the ratios of ``expected`` (W,) to the real counts, by type and range of ages. Ranges without windows are left out.

    The bootstrap draws whole videos with replacement.
    """
    sequence = np.repeat(np.arange(len(exposure.offsets) - 1), np.diff(exposure.offsets))[found.row]
    age_range = np.searchsorted(np.array(AGES_H) * 3600, found.bounds_s[:, 1], side="right") - 1
    n_videos, n_ages = len(exposure.offsets) - 1, len(AGES_H)
    pick = np.random.default_rng(seed).integers(0, max(n_videos, 1), (_DRAWS, n_videos))
    out = []
    for k, name in enumerate(types):
        mine = found.kind == k
        cell = sequence[mine] * n_ages + age_range[mine]
        sums = np.stack(
            [
                np.bincount(cell, values[mine], n_videos * n_ages).reshape(n_videos, n_ages)
                for values in (expected, found.counts)
            ]
        )
        for at in (None, *range(n_ages)):
            by_video = sums.sum(2) if at is None else sums[:, :, at]
            e, n = by_video.sum(1)
            if e > 0:
                drawn = by_video[:, pick].sum(2)
                ratios = _ratio(*drawn)
                # A draw without engagement has an infinite ratio, between which and another no number can be interpolated.
                low, high = np.quantile(ratios, 0.025, method="lower"), np.quantile(ratios, 0.975, method="higher")
                from_h = None if at is None else AGES_H[at]
                out.append(Rescaled(name, from_h, float(e), float(n), float(_ratio(e, n)), float(low), float(high)))
    return out


def _ratio(expected: NDArray[np.float64], counted: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.where(counted > 0, expected / np.maximum(counted, 1e-9), np.inf))
