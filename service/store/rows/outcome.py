"""The outcome of a batch of rows: how many rows were stored, and why other rows were refused."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from model.engagement.history import Mode

IGNORED_NAMES: Final = 100
"""Maximum number of unknown counters that an outcome names."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a row was refused: the field, its value, and what is allowed.

    ``mode``: whether the row is in the list of events or in the list of counters.
    ``index``: the row's position in that list.
    ``retryable``: whether the same row may be accepted later.
    """

    mode: Mode
    index: int
    reason: str
    field: str
    value: str
    allowed: str
    retryable: bool = False


@dataclass(slots=True)
class Outcome:
    """Counts of a batch's rows, and a list of its refused rows.

    ``unlisted``: number of refused rows that are not in ``rejections``.
    ``ignored``: for each counter that the served bundle does not know, the number of accepted rows with this counter.
    ``parked_videos``: the videos that rows were parked for.
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
        """The number of all refused rows, including the unlisted ones."""
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
        """Add to the counts of rows with unknown counters. ``names`` maps each counter to its number of rows.

        At most ``IGNORED_NAMES`` names are kept.
        """
        for name, rows in names.items():
            if name in self.ignored or len(self.ignored) < IGNORED_NAMES:
                self.ignored[name] = self.ignored.get(name, 0) + rows

    def list_at_most(self, limit: int) -> None:
        """Keep only the first ``limit`` rejections in the list. The others are only counted."""
        self.unlisted += max(0, len(self.rejections) - limit)
        del self.rejections[limit:]
