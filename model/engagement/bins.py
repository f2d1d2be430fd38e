"""The age grid, version 1 of the stored format.

A video's engagement is stored as one count for each bin of its age. A bin is one second wide below 64 s, and one sixty-fourth of the
age above. So 30 days take about 750 bins, whatever the number of events:

    bin(a) = floor(a)                                    a < 64 s
    bin(a) = 64 + floor(ln(a / 64) / ln(1 + 1/64))       a >= 64 s

Times and ages are integer microseconds everywhere outside the network (suffix ``_us``), and the edges are rounded up to whole
microseconds once, here. So a row falls into the same bin in every process.
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
"""The last bin is open: all ages beyond its edge (19.2 years) fall into it."""
NO_END_US: Final = 2**62
"""The age at which the last bin ends, which is never: its content counts as known only from its newest row on."""


def _edges_us() -> NDArray[np.int64]:
    linear = [i * SECOND_US for i in range(LINEAR_BINS)]
    growing = [math.ceil(LINEAR_BINS * SECOND_US * RATIO**k) for k in range(N_BINS + 1 - LINEAR_BINS)]
    return np.array(linear + growing, dtype=np.int64)


EDGES_US: Final = _edges_us()
"""Bin edges, (N_BINS + 1,) int64 microseconds of age: bin b is [EDGES_US[b], EDGES_US[b + 1]); the last bin has no end."""


def bin_index(age_us: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Bin of each age: int64 of the input's shape, in 0 .. N_BINS - 1. Ages must be >= 0 microseconds."""
    index: NDArray[np.int64] = np.minimum(np.searchsorted(EDGES_US, age_us, side="right") - 1, N_BINS - 1)
    return index


def bin_start_us(index: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Age in microseconds at which each bin starts, int64."""
    start: NDArray[np.int64] = EDGES_US[index]
    return start


def bin_end_us(index: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Age in microseconds at which each bin ends (exclusive), int64; ``NO_END_US`` for the last bin."""
    index = np.asarray(index)
    end: NDArray[np.int64] = np.where(index == N_BINS - 1, NO_END_US, EDGES_US[index + 1])
    return end
