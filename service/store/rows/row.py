"""One valid input row."""

from __future__ import annotations

from dataclasses import dataclass

from model.engagement.history import Mode
from service.store.rows.row_fields import REACH


@dataclass(frozen=True, slots=True)
class InputRow:
    """A valid row.

    ``index``: the row's position in the request.
    ``cells``: (type, value) pairs. An event has exactly one pair.
    """

    index: int
    video_id: str
    time_us: int
    mode: Mode
    cells: tuple[tuple[str, int], ...]
    reach: int = REACH.default
    id: str | None = None
