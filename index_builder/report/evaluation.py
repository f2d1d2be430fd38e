"""What a report shows: forecasts of a model and of other methods, with what really happened."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.report.examples import Example
from index_builder.samples.queries import Queries
from index_builder.scoring.cell_scores import POOLED, ScoreTable
from model.bundle import Manifest
from model.engagement.video import Video

MODEL: Final = "M3TR"
"""The method that the charts show. Other methods whose names begin with it are variants of the same model."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Scored forecasts of n queries.

    ``videos`` is what ``queries.video`` indexes. ``growths`` maps a method to its log2 growth of each query: (n, 3) float64 for
    the quantiles 0.1, 0.5 and 0.9, (n, 1) for a point forecast; MODEL is one of the methods. ``table`` is ``scores_by_cell``
    of both. ``about`` says in a sentence which videos were scored. ``seen_in_training`` says that the model may have learned
    from some of them. ``sampled_from`` is the number of videos that they are a part of, None if they are all videos.
    """

    manifest: Manifest
    videos: Sequence[Video]
    queries: Queries
    growths: dict[str, NDArray[np.float64]]
    table: ScoreTable
    about: str
    examples: Sequence[Example] = ()
    seen_in_training: bool = False
    sampled_from: int | None = None

    def rival(self) -> str | None:
        """The method with the lowest pooled nMSE, variants of the model left out."""
        others = {name: cells[POOLED]["nmse"] for name, cells in self.table.items() if not name.startswith(MODEL)}
        return min(others, key=lambda name: others[name], default=None)


def cell_name(cell: str) -> str:
    """A cell as words: "age24h+72h" becomes "24 h old, +72 h"."""
    match = re.fullmatch(r"age(.+)h\+(.+)h", cell)
    return f"{match[1]} h old, +{match[2]} h" if match else "all" if cell == POOLED else cell
