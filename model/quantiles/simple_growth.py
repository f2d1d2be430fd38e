"""The simple member of the ensemble: usual growth by age and horizon, with a slope in the present count.

Growth is written as a multiple of r = log2((age + horizon + 10 min) / (age + 10 min)), which is the growth of a count
that is proportional to the age. The multiple depends on the cell of age and horizon:

    mean    r (c + b z)
    median  r (c + b z + o)

Here c is the usual multiple, and z = (v - m) / d says how far v = log2(1 + count) lies from its mean m in the cell, in
standard deviations d. These are the constant-scaling and the log-linear model of Szabo and Huberman (2010), cell by cell.

A data set of few videos does not suffice to train the other members well. The fewer videos there are, the more weight
this member has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.head import N_CENTRE, grid_s

Floats = NDArray[np.float32]

PER_OCTAVE: Final = 2
"""Number of cells per doubling of age and of horizon."""
_SHORTEST_S: Final = 600.0
"""Shorter ages and horizons belong to the cells of this one. The same time is added to the ages in r."""
_MAX_DEVIATIONS: Final = 2.5
"""Maximum distance of a count from the mean of its cell, in standard deviations."""


def cell_of(seconds: NDArray[np.float64]) -> NDArray[np.int64]:
    """Return the cells of ages or of horizons, as integers that grow with the time."""
    return np.asarray(np.floor(np.log2(np.maximum(seconds, _SHORTEST_S)) * PER_OCTAVE), np.int64)


def unit_growth(age_s: NDArray[np.float64], horizon_s: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return r of the module, in log2 units."""
    return np.asarray(np.log2((age_s + horizon_s + _SHORTEST_S) / (age_s + _SHORTEST_S)))


@dataclass(frozen=True, slots=True)
class SimpleGrowth:
    """The simple member and its weight in the ensemble's centre.

    Each table has shape (A, H), for A cells of age and H cells of horizon. Ages and horizons outside them belong to the
    nearest cell.

    Attributes:
        origin: (2,) the first cell of age and the first cell of horizon.
        usual: the usual multiple c.
        slope: the slope b.
        middle: the mean m of log2(1 + count).
        spread: the standard deviation d of log2(1 + count), > 0.
        offset: the offset o of the median.
        largest: (1,) largest growth that training saw, in log2 units.
        weight: (N_CENTRE,) weight of this member in the mean and in the median, 0 .. 1. The other members have the rest.
    """

    origin: Floats
    usual: Floats
    slope: Floats
    middle: Floats
    spread: Floats
    offset: Floats
    largest: Floats
    weight: Floats

    def centre(
        self, value: NDArray[np.float64], age_s: NDArray[np.float64], horizon_s: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Return the mean and the median of growth, (N, J, N_CENTRE) in log2 units >= 0.

        ``value`` (N,) are counts, ``age_s`` (N,) ages, and ``horizon_s`` (N, J) horizons.
        """
        age = np.broadcast_to(age_s[:, None], horizon_s.shape)
        rows, columns = self.usual.shape
        i = np.clip(cell_of(age) - int(self.origin[0]), 0, rows - 1)
        j = np.clip(cell_of(horizon_s) - int(self.origin[1]), 0, columns - 1)
        level = np.log2(1 + value)[:, None]
        usual, slope, middle, spread, offset = (
            table[i, j].astype(np.float64) for table in (self.usual, self.slope, self.middle, self.spread, self.offset)
        )
        away = np.clip((level - middle) / spread, -_MAX_DEVIATIONS, _MAX_DEVIATIONS)
        multiple = usual + slope * away
        out = unit_growth(age, horizon_s)[..., None] * np.stack([multiple, multiple + offset], axis=-1)
        return np.clip(out, 0.0, float(self.largest[0]))

    def blend(
        self,
        centre: NDArray[np.float64],
        value: NDArray[np.float64],
        age_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        max_horizon_s: float,
    ) -> NDArray[np.float64]:
        """Return the centre (N, N_GRID + 1, N_CENTRE) of the ensemble. ``centre`` is that of the other members.

        A cold start keeps ``centre``, because its count says nothing.
        """
        warm = np.flatnonzero(~cold)
        if not len(warm) or not self.weight.any():
            return centre
        grid = grid_s(max_horizon_s)
        own = self.centre(value[warm], age_s[warm], np.broadcast_to(grid, (len(warm), len(grid))))
        out = centre.copy()
        out[warm] += self.weight.astype(np.float64) * (own - centre[warm])
        return out

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that are stored in a bundle's weights."""
        return {f"simple.{name}": getattr(self, name) for name in self.__slots__}

    @staticmethod
    def of(weights: Mapping[str, Floats]) -> SimpleGrowth | None:
        """Rebuild the member from the arrays that ``arrays`` returned, or return None if a bundle does not have it."""
        if "simple.weight" not in weights:
            return None
        return SimpleGrowth(*(weights[f"simple.{name}"] for name in SimpleGrowth.__slots__))


def no_weight() -> Floats:
    """Return the weights of a member that has no part in the ensemble."""
    return np.zeros(N_CENTRE, np.float32)
