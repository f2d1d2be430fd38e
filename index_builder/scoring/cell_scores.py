"""Scores several methods on the same queries, by cell of age and horizon."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.queries import Queries
from index_builder.scoring.answers import ALL
from index_builder.scoring.metrics import intervals, score
from index_builder.scoring.thresholds import reliability

POOLED: Final = "pooled"
"""Name of the cell that contains all queries."""
ScoreTable = dict[str, dict[str, Any]]
"""Maps a method to a dictionary from cells to scores and their ``intervals``. The last cell is POOLED."""


def scores_by_cell(
    queries: Queries, growths: dict[str, NDArray[np.float64]], advance: Callable[[int], None] | None = None
) -> ScoreTable:
    """Return the scores of each method, by cell and over all queries, with intervals from a bootstrap over videos.

    ``growths`` maps a method to its log2 growth of each query (``index_builder.scoring.answers``). ``advance`` is
    called with 1 after each method.

    The scores of POOLED also have the ``thresholds`` of ``reliability`` if the method forecasts all quantiles.
    """
    table: ScoreTable = {}
    for name, growth in growths.items():
        cells: dict[str, Any] = {}
        for cell in [*dict.fromkeys(queries.cell.tolist()), POOLED]:
            rows = queries.cell == cell if cell != POOLED else np.ones(len(queries.cell), dtype=bool)
            y, g = queries.pairs.growth[rows], growth[rows]
            # If a score is infinite in one bootstrap draw, the score has no interval.
            with np.errstate(invalid="ignore"):
                drawn = intervals(queries.video[rows], y, g)
            cells[cell] = asdict(score(y, g)) | {"intervals": drawn}
        if growth.shape[1] == ALL:
            cells[POOLED]["thresholds"] = reliability(queries.pairs.growth, growth, queries.pairs.value_now)
        table[name] = cells
        if advance:
            advance(1)
    return table
