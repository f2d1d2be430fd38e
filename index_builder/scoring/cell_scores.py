"""Scores several methods on the same queries, by cell of age and horizon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.queries import Queries
from index_builder.scoring.metrics import intervals, score

POOLED: Final = "pooled"
"""Name of the cell that contains all queries."""
ScoreTable = dict[str, dict[str, Any]]
"""Maps a method to a dictionary from cells to scores and their ``intervals``. The last cell is POOLED."""


def scores_by_cell(
    queries: Queries, growths: dict[str, NDArray[np.float64]], advance: Callable[[int], None] | None = None
) -> ScoreTable:
    """Return the scores of each method, by cell and over all queries, with intervals from a bootstrap over videos.

    ``growths`` maps a method to its log2 growth of each query. The array has shape (n, 3) for quantiles and (n, 1)
    for a point forecast. ``advance`` is called with 1 after each method.
    """
    table: ScoreTable = {}
    for name, growth in growths.items():
        cells: dict[str, Any] = {}
        for cell in [*dict.fromkeys(queries.cell.tolist()), POOLED]:
            rows = queries.cell == cell if cell != POOLED else np.ones(len(queries.cell), dtype=bool)
            y, g = queries.pairs.growth[rows], growth[rows]
            bounds = (g[:, 0], g[:, 2]) if g.shape[1] == 3 else (None, None)
            median = g[:, g.shape[1] // 2]
            # If a score is infinite in one bootstrap draw, the score has no interval.
            with np.errstate(invalid="ignore"):
                drawn = intervals(queries.video[rows], y, median, *bounds)
            cells[cell] = asdict(score(y, median, *bounds)) | {"intervals": drawn}
        table[name] = cells
        if advance:
            advance(1)
    return table
