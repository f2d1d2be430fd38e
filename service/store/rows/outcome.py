"""What became of a batch of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from model.engagement.history import Mode

IGNORED_NAMES: Final = 100
"""Limit of the unknown counters that an outcome names."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a row was refused: the value of ``field``, and what is allowed. ``index`` is its position in the ``mode`` list."""

    mode: Mode
    index: int
    reason: str
    field: str
    value: str
    allowed: str
    retryable: bool = False


@dataclass(slots=True)
class Outcome:
    """Counts of a batch's rows, and its refused rows; ``unlisted``: how many more rows were refused than are listed.

    ``parked_videos``: the videos that rows were parked for. ``ignored``: for each counter that the served bundle does not know,
    how many of the accepted rows had it.
    """

    accepted: int = 0
    duplicate: int = 0
    parked: int = 0
    corrected: int = 0
    rejections: list[Rejection] = field(default_factory=list)
    unlisted: int = 0
    ignored: dict[str, int] = field(default_factory=dict)
    parked_videos: list[str] = field(default_factory=list)

    @property
    def rejected(self) -> int:
        """The number of refused rows, listed or not."""
        return len(self.rejections) + self.unlisted

    def add(self, other: Outcome) -> None:
        """Add another batch's outcome to this one."""
        self.accepted += other.accepted
        self.duplicate += other.duplicate
        self.parked += other.parked
        self.corrected += other.corrected
        self.rejections += other.rejections
        self.unlisted += other.unlisted
        self.ignore(other.ignored)
        self.parked_videos += other.parked_videos

    def ignore(self, names: Mapping[str, int]) -> None:
        """Count rows by the unknown counter that they had; up to ``IGNORED_NAMES`` names are kept."""
        for name, rows in names.items():
            if name in self.ignored or len(self.ignored) < IGNORED_NAMES:
                self.ignored[name] = self.ignored.get(name, 0) + rows

    def list_at_most(self, limit: int) -> None:
        """Keep the first ``limit`` rejections, and only count the others."""
        self.unlisted += max(0, len(self.rejections) - limit)
        del self.rejections[limit:]
