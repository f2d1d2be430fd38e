"""One accepted input row, and what becomes of rows in the store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from model.engagement.history import Mode

MAX_COUNT: Final = 2**53 - 1
"""Largest count, sum or audience: the store's arithmetic is exact up to it."""

IGNORED_NAMES: Final = 100
"""Unknown counters that an answer names, at most."""


@dataclass(frozen=True, slots=True)
class Row:
    """A validated row; ``index`` is its place in the request, ``cells`` are (type, value) pairs."""

    index: int
    video_id: str
    time_us: int
    mode: Mode
    cells: tuple[tuple[str, int], ...]
    reach: int = 0
    id: str | None = None


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why a row was not taken: what ``field`` holds, what is allowed; ``index`` is its place in the ``mode`` list."""

    mode: Mode
    index: int
    reason: str
    field: str
    value: str
    allowed: str
    retryable: bool = False


@dataclass(slots=True)
class Outcome:
    """What became of a batch: counts of rows, and each refused row; ``unlisted`` are refused rows past those listed.

    ``parked_videos``: for which videos rows were parked. ``ignored``: by counter that the served bundle does not know, how many of
    the rows that were taken had it.
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
        """Refused rows, all of them."""
        return len(self.rejections) + self.unlisted

    def add(self, other: Outcome) -> None:
        """Sum another batch's outcome into this one."""
        self.accepted += other.accepted
        self.duplicate += other.duplicate
        self.parked += other.parked
        self.corrected += other.corrected
        self.rejections += other.rejections
        self.unlisted += other.unlisted
        self.ignore(other.ignored)
        self.parked_videos += other.parked_videos

    def ignore(self, names: Mapping[str, int]) -> None:
        """Count rows by the unknown counter that they had; of names there are at most ``IGNORED_NAMES``."""
        for name, rows in names.items():
            if name in self.ignored or len(self.ignored) < IGNORED_NAMES:
                self.ignored[name] = self.ignored.get(name, 0) + rows

    def list_at_most(self, most: int) -> None:
        """Keep the first ``most`` rejections only, and the number of the others."""
        self.unlisted += max(0, len(self.rejections) - most)
        del self.rejections[most:]
