"""The data of a report: forecasts of a model and of other methods, and the real outcomes."""

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
"""Name of the method that the charts show. Other methods whose names begin with this name are variants of the same model."""


@dataclass(frozen=True, slots=True, eq=False)
class Evaluation:
    """Scored forecasts of n queries.

    ``videos``: the videos that ``queries.video`` indexes.
    ``growths``: maps each method to its log2 growth of each query (``index_builder.scoring.answers``). MODEL is one of
    the methods.
    ``table``: result of ``scores_by_cell`` for the queries and growths.
    ``about``: says in words which videos were scored.
    ``seen_in_training``: True if the model may have learned from some of the scored videos.
    ``sampled_from``: number of videos that the scored videos were drawn from, or None if all videos were scored.
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
        """Return the method with the lowest pooled nMSE. The model and its variants are excluded."""
        others = {name: cells[POOLED]["nmse"] for name, cells in self.table.items() if not name.startswith(MODEL)}
        return min(others, key=lambda name: others[name], default=None)


def cell_name(cell: str) -> str:
    """Return the name of a cell in words: "age24h+72h" becomes "24 h old, +72 h"."""
    match = re.fullmatch(r"age(.+)h\+(.+)h", cell)
    return f"{match[1]} h old, +{match[2]} h" if match else "all" if cell == POOLED else cell
