"""Formats the rows of a report's score tables as text."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from index_builder.report.evaluation import MODEL, cell_name
from index_builder.report.svg import number
from index_builder.scoring.cell_scores import POOLED, ScoreTable

_TO: Final = "\N{EN DASH}"


@dataclass(frozen=True, slots=True)
class _Score:
    """Describes one kind of score.

    ``key``: the score's key in the table.
    ``heading``: heading of the score's column.
    ``places``: number of decimal places.
    ``better``: function that chooses the best of several values, or None if no value is better than another.
    """

    key: str
    heading: str
    places: int
    better: Callable[[Iterable[float]], float] | None


_SCORES: Final = (
    _Score("nmse", "nMSE", 4, min),
    _Score("mae", "MAE", 4, min),
    _Score("src", "SRC", 4, max),
    _Score("pinball", "pinball", 4, min),
    _Score("cover", "cover", 3, None),
    _Score("width", "width", 3, None),
    _Score("cover50", "cover 50%", 3, None),
    _Score("cover90", "cover 90%", 3, None),
)
_NMSE: Final = _Score("nmse", "nMSE", 3, min)


@dataclass(frozen=True, slots=True)
class ScoreCell:
    """A score as text, its 95 % interval as text or "", and whether the score is the best of its column."""

    value: str
    interval: str
    best: bool


@dataclass(frozen=True, slots=True)
class ScoreRow:
    """The scores of one method."""

    method: str
    is_model: bool
    cells: list[ScoreCell]


@dataclass(frozen=True, slots=True)
class Heading:
    """The heading of a column. ``note`` is shown below the heading."""

    title: str
    note: str = ""


@dataclass(frozen=True, slots=True)
class ScoresOfCell:
    """A table with scores of all methods. ``cell`` is the name of the cell that the scores belong to."""

    cell: str
    headings: list[Heading]
    rows: list[ScoreRow]


def all_scores(table: ScoreTable, cell: str) -> ScoresOfCell:
    """Return a table with every score of every method in one cell."""
    columns = [(score, {method: cells[cell] for method, cells in table.items()}) for score in _SCORES]
    headings = [Heading("model"), *(Heading(score.heading) for score in _SCORES)]
    return ScoresOfCell(cell_name(cell), headings, _rows(table, columns))


def nmse_by_cell(table: ScoreTable) -> ScoresOfCell:
    """Return a table with the nMSE of every method in every cell. The pooled cell comes first."""
    first = next(iter(table.values()))
    cells = sorted(first, key=lambda cell: cell != POOLED)
    columns = [(_NMSE, {method: scored[cell] for method, scored in table.items()}) for cell in cells]
    headings = [Heading("model"), *(Heading(cell_name(cell), f"n={first[cell]['n']:,}") for cell in cells)]
    return ScoresOfCell("", headings, _rows(table, columns))


def _rows(table: ScoreTable, columns: list[tuple[_Score, dict[str, Any]]]) -> list[ScoreRow]:
    """Return one row per method. A column is a kind of score, together with a dictionary from each method to its scores."""
    cells: dict[str, list[ScoreCell]] = {method: [] for method in table}
    for score, by_method in columns:
        values = [scores[score.key] for scores in by_method.values() if np.isfinite(scores[score.key])]
        best = score.better(values) if score.better and values else None
        for method, scores in by_method.items():
            cells[method].append(_cell(scores, score, best))
    return [ScoreRow(method, method == MODEL, row) for method, row in cells.items()]


def _cell(scores: dict[str, Any], score: _Score, best: float | None) -> ScoreCell:
    value = scores[score.key]
    if not np.isfinite(value):
        return ScoreCell("-", "", False)
    low, high = scores["intervals"][score.key]
    interval = f"{number(low, 3)}{_TO}{number(high, 3)}" if np.isfinite([low, high]).all() else ""
    return ScoreCell(number(value, score.places), interval, value == best)
