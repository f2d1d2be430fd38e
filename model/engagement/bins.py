"""The age grid, version 1 of the stored format.

A video's engagement is stored as one count per bin of its age. Below 64 s, a bin is one second wide. Above 64 s, its
width is one sixty-fourth of the age. So 30 days have about 750 bins, however many events there are:

    bin(a) = floor(a)                                    a < 64 s
    bin(a) = 64 + floor(ln(a / 64) / ln(1 + 1/64))       a >= 64 s

Outside the network, all times and ages are integer microseconds (suffix ``_us``). The bin edges are rounded up to
whole microseconds in this module only. So a row of engagement belongs to the same bin in every OS process.
"""

from __future__ import annotations

import math
from typing import Final

import numpy as np
from numpy.typing import NDArray

BINS_VERSION: Final = 1
SECOND_US: Final = 1_000_000
HOUR_US: Final = 3600 * SECOND_US
LINEAR_BINS: Final = 64
RATIO: Final = 1 + 1 / 64
N_BINS: Final = 1100
"""Number of bins. The last bin is open: it holds all ages after its start, which is at 19.2 years."""
NO_END_US: Final = 2**62
"""Age at which the last bin ends. No video reaches this age. So the engagement in the last bin gets the time of the newest
row, not the time at which the bin ends."""


def _edges_us() -> NDArray[np.int64]:
    linear = [i * SECOND_US for i in range(LINEAR_BINS)]
    growing = [math.ceil(LINEAR_BINS * SECOND_US * RATIO**k) for k in range(N_BINS + 1 - LINEAR_BINS)]
    return np.array(linear + growing, dtype=np.int64)


EDGES_US: Final = _edges_us()
"""Bin edges, (N_BINS + 1,) int64 microseconds of age. Bin b is [EDGES_US[b], EDGES_US[b + 1]), but the last bin has no end."""


def bin_index(age_us: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return the bin of each age, int64 in 0 .. N_BINS - 1, with the shape of the input. Ages must be >= 0 microseconds."""
    index: NDArray[np.int64] = np.minimum(np.searchsorted(EDGES_US, age_us, side="right") - 1, N_BINS - 1)
    return index


def bin_start_us(index: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return the age in microseconds at which each bin starts, int64."""
    start: NDArray[np.int64] = EDGES_US[index]
    return start


def bin_end_us(index: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Return the age in microseconds at which each bin ends (exclusive), int64. The last bin ends at ``NO_END_US``."""
    index = np.asarray(index)
    end: NDArray[np.int64] = np.where(index == N_BINS - 1, NO_END_US, EDGES_US[index + 1])
    return end
