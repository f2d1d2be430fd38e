"""One valid input row."""

from __future__ import annotations

from dataclasses import dataclass

from model.engagement.history import Mode
from service.store.rows.row_fields import REACH


@dataclass(frozen=True, slots=True)
class InputRow:
    """A valid row.

    ``index``: the row's position in the request.
    ``cells``: (type, value) pairs. An event has exactly one pair. The values are counts. In a counters row, a name that begins with
    ``SIGNAL_MARK`` is a signal, and its value may be any number.
    """

    index: int
    video_id: str
    time_us: int
    mode: Mode
    cells: tuple[tuple[str, float], ...]
    reach: int = REACH.default
    id: str | None = None
