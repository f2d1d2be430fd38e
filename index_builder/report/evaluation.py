"""What a report is made from: forecasts of a model and of others beside it, with what really happened."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.report.examples import Example
from index_builder.samples.queries import Queries
from index_builder.scoring.metrics import intervals, score
from model.bundle import Manifest
from model.engagement.video import Video

MODEL: Final = "M3TR"
"""The arm that the charts look at; others whose names begin with it are variants of the same model."""
POOLED: Final = "pooled"
ScoreTable = dict[str, dict[str, Any]]
"""arm -> cell -> scores, with their ``intervals``; the last cell is POOLED."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Scored forecasts of n queries.

    ``videos`` is what ``queries.video`` indexes. ``growths`` maps an arm to its log2 growth of each query: (n, 3) float64 for
    the quantiles 0.1, 0.5 and 0.9, (n, 1) for a point forecast; MODEL is one of them. ``table`` is ``scores_by_cell`` of both.
    ``about`` says in a sentence which videos were scored; ``seen_in_training`` that some may have been learned from;
    ``share_of`` of how many videos they are a share, None where they are all.
    """

    manifest: Manifest
    videos: Sequence[Video]
    queries: Queries
    growths: dict[str, NDArray[np.float64]]
    table: ScoreTable
    about: str
    examples: Sequence[Example] = ()
    seen_in_training: bool = False
    share_of: int | None = None

    def rival(self) -> str | None:
        """The arm that is no variant of the model and has the lowest pooled nMSE."""
        others = {name: cells[POOLED]["nmse"] for name, cells in self.table.items() if not name.startswith(MODEL)}
        return min(others, key=lambda name: others[name], default=None)


def cell_name(cell: str) -> str:
    """A cell as words: that of a query is named by its age and horizon."""
    asked = re.fullmatch(r"age(.+)h\+(.+)h", cell)
    return f"{asked[1]} h old, +{asked[2]} h" if asked else "all" if cell == POOLED else cell


def scores_by_cell(
    queries: Queries, growths: dict[str, NDArray[np.float64]], advance: Callable[[int], None] | None = None
) -> ScoreTable:
    """Scores of each arm by cell and pooled, with bootstrap intervals by video."""
    table: ScoreTable = {}
    for name, growth in growths.items():
        cells: dict[str, Any] = {}
        for cell in [*dict.fromkeys(queries.cell.tolist()), POOLED]:
            rows = queries.cell == cell if cell != POOLED else np.ones(len(queries.cell), dtype=bool)
            y, g = queries.pairs.growth[rows], growth[rows]
            bounds = (g[:, 0], g[:, 2]) if g.shape[1] == 3 else (None, None)
            median = g[:, g.shape[1] // 2]
            # A score that is infinite in a draw has no interval.
            with np.errstate(invalid="ignore"):
                drawn = intervals(queries.video[rows], y, median, *bounds)
            cells[cell] = asdict(score(y, median, *bounds)) | {"intervals": drawn}
        table[name] = cells
        if advance:
            advance(1)
    return table
