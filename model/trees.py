"""Boosted trees: the second member of the ensemble. Trees and network see the same inputs but err differently, so their mean is better.

The trees forecast the mean and the median of growth for one pair of (what is known at ``now``, horizon). A row of their
inputs holds, in this order:

- the numbers that the network's head reads: summary, cascade, creator, static features, attributes and signals
- the features of the newest token and of the read token
- the content vector's source: the principal components of the text
- the usual growth of the video's category, and of its language
- the means of the neighbours' features, weighted by similarity
- the horizon, the horizon relative to the age, and the times of day of ``now`` and of the horizon's end

In the service, the trees are read at TREE_HORIZONS horizons of the head's grid, and interpolated between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.bank.neighbours import N_NEIGHBOUR
from model.features.creator import N_GROWTH
from model.onnx_graph import Graph
from model.quantiles.head import N_CENTRE, N_GRID, grid_s

Floats = NDArray[np.float32]

N_COMPONENTS: Final = 32
"""Number of principal components of the text that the trees read."""
_STEPS: Final = np.array([0, 8, 16, 24, 32, 38, 43, 48, 52, 56, 60, 62, 64])
"""Horizons of the head's grid at which the trees are read. At the first, the growth is 0."""
TREE_HORIZONS: Final = len(_STEPS) - 1
N_ASKED: Final = 8
_DAY_S: Final = 86_400.0
_FOCUS: Final = 4.0
"""Factor of the similarity in the neighbours' weights, as in the fusion block at the start of training."""
_SIMILARITY: Final = 2 * N_GROWTH + 6
"""Column of the combined similarity among a neighbour's features."""


def neighbour_means(features: Floats, mask: Floats) -> Floats:
    """Return the means (N, N_NEIGHBOUR + 1) of the features (N, K, N_NEIGHBOUR) of the neighbours, and the number of neighbours.

    The means are weighted by exp(4 similarity). A growth that is not known yet has no weight. ``mask`` (N, K) is 1 for a neighbour.
    """
    out = np.zeros((len(mask), N_NEIGHBOUR + 1), np.float32)
    if not mask.shape[1]:
        return out
    weight = np.exp(_FOCUS * features[..., _SIMILARITY].astype(np.float64)) * mask
    total = np.maximum(weight.sum(1), 1e-9)
    out[:, :N_NEIGHBOUR] = np.einsum("nk,nkf->nf", weight, features.astype(np.float64), optimize=False) / total[:, None]
    known = out[:, N_GROWTH : 2 * N_GROWTH]
    # An unknown growth counts as 0 in the mean, so the mean is divided by the known weight.
    out[:, :N_GROWTH] = np.where(known > 0, out[:, :N_GROWTH] / np.maximum(known, 1e-6), 0)
    out[:, -1] = mask.sum(1)
    return out


def at_now(inputs: Mapping[str, NDArray[np.generic]], components: Floats, by_name: tuple[Floats, Floats]) -> Floats:
    """Return what the trees read of N requests at ``now``, (N, F) float32.

    Args:
        inputs: the inputs of the head's graph; see ``model.head_inputs``.
        components: (N, N_COMPONENTS) principal components of the text.
        by_name: usual growth of each category and of each language.
    """
    names = np.stack([table[inputs[name]] for table, name in zip(by_name, ("category", "language"), strict=True)], 1)
    numbers = [inputs[name] for name in ("summary", "creator", "static", "attributes", "signals") if name in inputs]
    means = neighbour_means(np.asarray(inputs["neighbours"], np.float32), np.asarray(inputs["mask"], np.float32))
    parts = [*numbers, inputs["last"], inputs["read"], components, names, means]
    return np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)


def asked(age_s: NDArray[np.float64], now_s: NDArray[np.float64], horizon_s: NDArray[np.float64]) -> Floats:
    """Return what the trees read of the horizons (N, J), (N, J, N_ASKED) float32. Ages and times (N,) are in seconds."""
    age, now = age_s[:, None], now_s[:, None]
    turns = 2 * np.pi * np.stack([np.broadcast_to(now, horizon_s.shape), now + horizon_s], -1) / _DAY_S
    week = 2 * np.pi * (now + horizon_s) / (7 * _DAY_S)
    columns = [
        np.log1p(horizon_s),
        np.log((age + horizon_s + 60) / (age + 60)),
        np.sin(turns[..., 0]),
        np.cos(turns[..., 0]),
        np.sin(turns[..., 1]),
        np.cos(turns[..., 1]),
        np.sin(week),
        np.cos(week),
    ]
    return np.stack(columns, axis=-1).astype(np.float32)


def rows(known: Floats, horizons: Floats) -> Floats:
    """Return one input row for each pair of request and horizon, (N * J, F + N_ASKED), from (N, F) and (N, J, N_ASKED)."""
    return np.concatenate([known.repeat(horizons.shape[1], axis=0), horizons.reshape(-1, horizons.shape[-1])], axis=1)


class Trees:
    """The trees of one bundle and their weights in the ensemble's mean.

    Args:
        path: the ONNX graph, which takes rows and returns the mean and the median of growth.
        weight: (N_CENTRE,) weight of the trees in the mean and in the median. The network has the rest.
        projection: (D, N_COMPONENTS) projects text vectors to their principal components.
        by_name: usual growth of each category and of each language.
    """

    def __init__(self, path: Path, weight: Floats, projection: Floats, by_name: tuple[Floats, Floats]) -> None:
        self._graph = Graph(path)
        self.weight = weight.astype(np.float64)
        self.projection = projection
        self.by_name = by_name

    @staticmethod
    def of(path: Path, weights: Mapping[str, Floats]) -> Trees | None:
        """Return the trees of a bundle, or None if the bundle has none."""
        if "trees.weight" not in weights:
            return None
        by_name = weights["trees.category"], weights["trees.language"]
        return Trees(path, weights["trees.weight"], weights["trees.projection"], by_name)

    def growth(self, table: Floats) -> NDArray[np.float64]:
        """Return the mean and the median of growth, (n, N_CENTRE) in log2 units >= 0, for input rows (n, F + N_ASKED)."""
        return np.maximum(self._graph({"x": table}).astype(np.float64), 0)

    def blend(
        self,
        centre: NDArray[np.float64],
        inputs: Mapping[str, NDArray[np.generic]],
        components: Floats,
        age_s: NDArray[np.float64],
        now_s: NDArray[np.float64],
        cold: NDArray[np.bool_],
        max_horizon_s: float,
    ) -> NDArray[np.float64]:
        """Return the centre (N, N_GRID + 1, N_CENTRE) of the ensemble. ``centre`` is the network's. Cold starts keep it."""
        warm = np.flatnonzero(~cold)
        if not len(warm) or not self.weight.any():
            return centre
        horizon_s = np.broadcast_to(grid_s(max_horizon_s)[_STEPS[1:]], (len(warm), TREE_HORIZONS))
        known = at_now({name: value[warm] for name, value in inputs.items()}, components[warm], self.by_name)
        read = self.growth(rows(known, asked(age_s[warm], now_s[warm], horizon_s)))
        growth = read.reshape(len(warm), TREE_HORIZONS, N_CENTRE)
        out = centre.copy()
        out[warm] += self.weight * (_interpolated(growth) - centre[warm])
        return out


def _interpolated(growth: NDArray[np.float64]) -> NDArray[np.float64]:
    """Interpolate growth (N, TREE_HORIZONS, N_CENTRE) on the grid, (N, N_GRID + 1, N_CENTRE). The growth at horizon 0 is 0."""
    at = np.concatenate([np.zeros((len(growth), 1, N_CENTRE)), growth], axis=1)
    grid = np.arange(N_GRID + 1)
    upper = np.clip(np.searchsorted(_STEPS, grid), 1, TREE_HORIZONS)
    share = ((grid - _STEPS[upper - 1]) / (_STEPS[upper] - _STEPS[upper - 1]))[None, :, None]
    return np.asarray(at[:, upper - 1] * (1 - share) + at[:, upper] * share)
