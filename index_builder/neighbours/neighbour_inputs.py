"""What the fusion block and the trees read of the samples' neighbours and summaries."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.samples import Samples
from model.bank.neighbours import N_NEIGHBOUR


@dataclass(frozen=True, slots=True)
class NeighbourInputs:
    """Neighbours of N samples, as the fusion block reads them.

    Both arrays are float32: ``features`` (N, K, N_NEIGHBOUR) and ``mask`` (N, K), for up to K neighbours per sample.
    """

    features: NDArray[np.float32]
    mask: NDArray[np.float32]

    @staticmethod
    def none(samples: int) -> NeighbourInputs:
        """Return inputs without neighbours for ``samples`` samples."""
        return NeighbourInputs(np.zeros((samples, 0, N_NEIGHBOUR), np.float32), np.zeros((samples, 0), np.float32))

    def take(self, rows: NDArray[np.bool_]) -> NeighbourInputs:
        """Return the neighbours of the samples that ``rows`` selects."""
        return NeighbourInputs(self.features[rows], self.mask[rows])


def numbers_read(samples: Samples, rows: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the summaries of samples ``rows``, joined with the features of their cascades."""
    return np.concatenate([samples.summary[rows], samples.cascade[rows]], axis=1)
