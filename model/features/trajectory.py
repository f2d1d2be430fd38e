"""Trajectory vectors: shapes of curves, moved and projected so that videos that grow alike from now on are near each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from model.growth.curve_kernels import NOMINAL_AGES_US

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TrajectorySpace:
    """Turns shapes (``model.features.shape``) into trajectory vectors: (shape - centre) projection.

    Attributes:
        centre: (len(NOMINAL_AGES_US), D) float32 mean shape at each nominal age. Without it, all cosines would be near 1.
        projection: (D, P) float32.
    """

    centre: Floats
    projection: Floats

    @staticmethod
    def of(weights: Mapping[str, NDArray[Any]]) -> TrajectorySpace:
        """Return the space of a bundle."""
        return TrajectorySpace(weights["trajectory.centre"], weights["trajectory.projection"])

    @staticmethod
    def around(shapes: Floats, bucket: NDArray[np.int64]) -> TrajectorySpace:
        """Return the space with the mean of ``shapes`` (N, D) at each nominal age ``bucket`` (N,) >= 0, and without a projection."""
        total = np.zeros((len(NOMINAL_AGES_US), shapes.shape[1]))
        some = shapes.any(1)
        np.add.at(total, bucket[some], shapes[some])
        known = np.bincount(bucket[some], minlength=len(NOMINAL_AGES_US))
        centre = (total / np.maximum(known, 1)[:, None]).astype(np.float32)
        return TrajectorySpace(centre, np.eye(shapes.shape[1], dtype=np.float32))

    @property
    def dim(self) -> int:
        """The dimension P of the vectors."""
        return int(self.projection.shape[1])

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that are stored in a bundle's weights."""
        return {"trajectory.centre": self.centre, "trajectory.projection": self.projection}

    def vectors(self, shapes: Floats, bucket: NDArray[np.int64]) -> Floats:
        """Return the vectors (N, P) float32 of shapes (N, D) at nominal ages ``bucket`` (N,). The vector of a missing shape is zero."""
        out = np.zeros((len(shapes), self.dim), np.float32)
        _project(np.ascontiguousarray(shapes, np.float32), bucket, self.centre, self.projection, out)
        return out


@numba.njit(cache=True, nogil=True)
def _project(shapes, bucket, centre, projection, out):  # type: ignore[no-untyped-def]
    # A loop, so that a vector does not depend on the other rows in any bit.
    for i in range(len(shapes)):
        some = False
        for d in range(shapes.shape[1]):
            some = some or shapes[i, d] != 0
        if not some:
            continue
        at = max(bucket[i], 0)
        for p in range(out.shape[1]):
            total = 0.0
            for d in range(shapes.shape[1]):
                total += (shapes[i, d] - centre[at, d]) * projection[d, p]
            out[i, p] = total
