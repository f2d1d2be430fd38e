"""The signals that a bundle reads, and their features at a given time.

A reading counts from the end of its bin on, as engagement does. Its value is read as a level: its position among the
readings of the training data, 0 .. 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import EDGES_US
from model.engagement.signals import SignalCells

_SPANS_S: Final = np.array([3600.0, 4 * 3600.0, 12 * 3600.0])
"""Spans in seconds, counted back from now, over which the change is measured."""
N_SIGNAL: Final = 3 + 2 * (len(_SPANS_S) + 1)
"""Number of features of one signal. The features are, in order:

- whether there is a reading, its level, and the time since it
- for each span, and for the time since the first reading: whether there was a reading then, and the change of the level
"""
_TIME_SCALE: Final = 1 / 12


@dataclass(frozen=True, slots=True)
class Signal:
    """A signal that a bundle reads.

    ``quantiles``: quantiles of its readings in the training data at evenly spaced levels from 0 to 1, non-decreasing.
    """

    name: str
    quantiles: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.quantiles) < 2:
            raise ValueError(f"{self.name}: a signal needs at least two quantiles")


@numba.njit(cache=True, nogil=True)
def _level(value, quantiles):  # type: ignore[no-untyped-def]
    n = len(quantiles) - 1
    if value < quantiles[0]:
        return 0.0
    if value >= quantiles[n]:
        return 1.0
    at = np.searchsorted(quantiles, value, side="right") - 1
    return (at + (value - quantiles[at]) / (quantiles[at + 1] - quantiles[at])) / n


@numba.njit(cache=True, nogil=True)
def _read_signal(offsets, bins, values, edges, age_s, quantiles, spans_s, out):  # type: ignore[no-untyped-def]
    last_bin = len(edges) - 2
    n_spans = len(spans_s)
    for s in range(len(age_s)):
        first, end = offsets[s], offsets[s + 1]
        if first == end:
            continue
        age = age_s[s]
        row = out[s]
        newest = bins[end - 1]
        at = age if newest == last_bin else min(edges[newest + 1] * 1e-6, age)
        level = _level(values[end - 1], quantiles)
        row[0] = 1.0
        row[1] = level
        row[2] = np.log1p(age - at) * _TIME_SCALE
        i = end - 1
        for j in range(n_spans):
            while i >= first and (bins[i] == last_bin or min(edges[bins[i] + 1] * 1e-6, age) > age - spans_s[j]):
                i -= 1
            if i < first:
                break
            row[3 + 2 * j] = 1.0
            row[4 + 2 * j] = level - _level(values[i], quantiles)
        if end - first > 1:
            row[3 + 2 * n_spans] = 1.0
            row[4 + 2 * n_spans] = level - _level(values[first], quantiles)


def signal_features(signal: Signal, cells: SignalCells, age_s: NDArray[np.float64]) -> NDArray[np.float32]:
    """Return the features (S, N_SIGNAL) float32 of one signal of S sequences at the ages ``age_s`` (S,) in seconds."""
    out = np.zeros((len(age_s), N_SIGNAL), np.float32)
    quantiles = np.array(signal.quantiles)
    _read_signal(cells.offsets, cells.bins, cells.values, EDGES_US, age_s, quantiles, _SPANS_S, out)
    return out
