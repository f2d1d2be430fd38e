"""Boosted trees: the second member of the ensemble. Trees and network see the same inputs but err differently, so their mean is better.

The trees forecast the mean and the median of growth for one pair of (what is known at ``now``, horizon). A row of their
inputs holds, in this order:

- the numbers that the network's head reads: summary, cascade, creator and signals
- the features of the newest token and of the read token
- the content: static features, attributes, the principal components of the text, and the usual growth of the category and of the language
- the means of the neighbours' similarities and levels
- the horizon, the horizon relative to the age, and the times of day of ``now`` and of the horizon's end
- what the neighbours did over this horizon (``model.bank.neighbour_growth``)

In the service, the trees are read at TREE_HORIZONS horizons of the head's grid, and interpolated between them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.bank.neighbour_growth import N_NEAR, near_growth, neighbour_means
from model.engagement.bins import SECOND_US
from model.features.creator import RESIDUAL
from model.features.schema import Schema
from model.features.summary import share_columns
from model.growth.base_growth import base_of_features
from model.growth.curve_kernels import N_GROWTH, growth_horizons_us
from model.onnx_graph import Graph
from model.quantiles.head import N_CENTRE, N_GRID, grid_s

Floats = NDArray[np.float32]

N_COMPONENTS: Final = 32
"""Number of principal components of the text that the trees read."""
STEPS: Final = np.array([0, 16, 28, 35, 40, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 64])
"""Horizons of the head's grid at which the trees are read. At the first, the growth is 0.

With a longest horizon of a week, they are at most a third apart from 8 hours on. Between horizons that are further apart, the
interpolation would lose what the hour of day does to growth.
"""
TREE_HORIZONS: Final = len(STEPS) - 1
_LEAST: Final = 1e-3
"""Least growth that is scaled."""
N_CLOCK: Final = 8
N_ASKED: Final = N_CLOCK + N_NEAR
"""Number of values that the trees read of a horizon."""
_DAY_S: Final = 86_400.0


@dataclass(frozen=True, slots=True, eq=False)
class TreeReader:
    """Computes the rows that the trees read.

    Attributes:
        projection: (D, N_COMPONENTS) projects text vectors to their principal components.
        by_name: usual growth of each category and of each language.
        base: (len(NOMINAL_AGES_US), N_GROWTH, N_BASE) weights of the base forecast of growth.
        n_types: number of engagement types.
        max_horizon_s: longest horizon in seconds.
        content: whether the trees read the content. Without it, its numbers are zero (an ablation).
    """

    projection: Floats
    by_name: tuple[Floats, Floats]
    base: NDArray[np.float64]
    n_types: int
    max_horizon_s: float
    content: bool = True

    def read(
        self,
        inputs: Mapping[str, NDArray[np.generic]],
        components: Floats,
        age_s: NDArray[np.float64],
        now_s: NDArray[np.float64],
        horizon_s: NDArray[np.float64],
    ) -> TreeInputs:
        """Return what the trees read of N requests, each for J horizons.

        Args:
            inputs: the inputs of the head's graph; see ``model.head_inputs``.
            components: (N, N_COMPONENTS) principal components of the text.
            age_s: (N,) ages in seconds.
            now_s: (N,) times in seconds since 1970 UTC.
            horizon_s: (N, J) horizons in seconds.
        """
        names = [table[inputs[name]] for table, name in zip(self.by_name, ("category", "language"), strict=True)]
        of_content = [inputs[name] for name in ("static", "attributes") if name in inputs] + [
            components,
            np.stack(names, 1),
        ]
        if not self.content:
            of_content = [np.zeros_like(part) for part in of_content]
        numbers = [inputs[name] for name in ("summary", "creator", "signals") if name in inputs]
        features, mask = (np.asarray(inputs[name], np.float32) for name in ("neighbours", "mask"))
        parts = [*numbers, inputs["last"], inputs["read"], *of_content, neighbour_means(features, mask)]
        known = np.concatenate([np.asarray(part, np.float32) for part in parts], axis=1)
        summary = np.asarray(inputs["summary"], np.float64)
        shares = np.ascontiguousarray(summary[:, share_columns(self.n_types)[:3]])
        base = base_of_features(summary[:, 1], shares, age_s, self.base)
        growth_s = growth_horizons_us(round(self.max_horizon_s * SECOND_US)) / SECOND_US
        of_creator = np.asarray(inputs["creator"], np.float64)[:, RESIDUAL : RESIDUAL + N_GROWTH]
        near = near_growth(features, mask, base, of_creator, horizon_s, growth_s)
        return TreeInputs(known, np.concatenate([_asked(age_s, now_s, horizon_s), near], axis=-1))


@dataclass(frozen=True, slots=True, eq=False)
class TreeInputs:
    """What the trees read: ``known`` (N, F) float32 at ``now``, and ``asked`` (N, J, N_ASKED) float32 of each horizon."""

    known: Floats
    asked: Floats

    def rows(self) -> Floats:
        """Return one row for each pair of request and horizon, (N * J, F + N_ASKED)."""
        asked = self.asked
        return np.concatenate([self.known.repeat(asked.shape[1], axis=0), asked.reshape(-1, asked.shape[-1])], axis=1)


def _asked(age_s: NDArray[np.float64], now_s: NDArray[np.float64], horizon_s: NDArray[np.float64]) -> Floats:
    """Return what the trees read of the horizons (N, J) alone, (N, J, N_CLOCK) float32. Ages and times (N,) are in seconds."""
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


class Trees:
    """The trees of one bundle and their weights in the ensemble's mean.

    Args:
        path: the ONNX graph, which takes rows and returns the mean and the median of growth.
        weight: (N_CENTRE,) weight of the trees in the mean and in the median. The network has the rest.
        reader: computes the rows.
    """

    def __init__(self, path: Path, weight: Floats, reader: TreeReader) -> None:
        self._graph = Graph(path)
        self.weight = weight.astype(np.float64)
        self.reader = reader

    @staticmethod
    def of(path: Path, weights: Mapping[str, NDArray[Any]], schema: Schema, content: bool) -> Trees | None:
        """Return the trees of a bundle, or None if the bundle has none. ``content`` says whether they read the content."""
        if "trees.weight" not in weights:
            return None
        by_name = weights["trees.category"], weights["trees.language"]
        base = weights["base_growth"].astype(np.float64)
        reader = TreeReader(
            weights["trees.projection"], by_name, base, len(schema.types), schema.max_horizon_us / SECOND_US, content
        )
        return Trees(path, weights["trees.weight"], reader)

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
    ) -> NDArray[np.float64]:
        """Return the centre (N, N_GRID + 1, N_CENTRE) of the ensemble. ``centre`` is the network's. Cold starts keep it."""
        warm = np.flatnonzero(~cold)
        if not len(warm) or not self.weight.any():
            return centre
        horizon_s = np.broadcast_to(grid_s(self.reader.max_horizon_s)[STEPS[1:]], (len(warm), TREE_HORIZONS))
        mine = {name: value[warm] for name, value in inputs.items()}
        read = self.reader.read(mine, components[warm], age_s[warm], now_s[warm], horizon_s)
        growth = self.growth(read.rows()).reshape(len(warm), TREE_HORIZONS, N_CENTRE)
        out = centre.copy()
        out[warm] = _moved(centre[warm], self.weight * (growth - centre[warm][:, STEPS[1:]]))
        return out


def _moved(centre: NDArray[np.float64], by: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the centre (N, N_GRID + 1, N_CENTRE) moved by ``by`` (N, TREE_HORIZONS, N_CENTRE) at the trees' horizons.

    Between these horizons, the move is interpolated. Before the first one, the centre is scaled, so that it keeps its form and
    stays positive.
    """
    at = np.concatenate([np.zeros((len(by), 1, N_CENTRE)), by], axis=1)
    grid = np.arange(N_GRID + 1)
    upper = np.clip(np.searchsorted(STEPS, grid), 1, TREE_HORIZONS)
    share = ((grid - STEPS[upper - 1]) / (STEPS[upper] - STEPS[upper - 1]))[None, :, None]
    out = centre + at[:, upper - 1] * (1 - share) + at[:, upper] * share
    first = STEPS[1]
    there = centre[:, first]
    scaled = centre[:, :first] * ((there + by[:, 0]) / np.maximum(there, _LEAST))[:, None]
    out[:, :first] = np.where((there > _LEAST)[:, None], scaled, out[:, :first])
    return np.asarray(out)
