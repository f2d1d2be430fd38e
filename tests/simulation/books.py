"""What producers and owners of videos know: only what they sent and the responses that they got."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from service.problems import Conflict
from service.store.rows.outcome import Outcome
from service.store.store import AppliedRows
from service.times import parse_time
from tests.simulation.plan import Mode, Plan, PlannedRow
from tests.simulation.verdict import demand


@dataclass(slots=True)
class Book:
    """One video.

    ``published_us`` and ``title``: of the last acknowledged registration, None without one. ``candidates``: publication times that
    may be stored, those of unanswered registrations included. ``sent`` rows may be in the store, ``acknowledged`` ones must be.
    ``version``: the highest seen so far. A deletion resets everything but the version.
    """

    published_us: int | None = None
    title: str | None = None
    candidates: set[int] = field(default_factory=set)
    sent: set[int] = field(default_factory=set)
    acknowledged: set[int] = field(default_factory=set)
    version: int = 0

    def registered(
        self, since_version: int, published_us: int, title: str, response: tuple[AppliedRows, list[str]] | Conflict
    ) -> None:
        """Note the response to a registration; ``since_version``: the highest version seen when it was sent."""
        if isinstance(response, Conflict):
            kept_us = parse_time("allowed", response.extra["allowed"])
            demand(self.sent, "a conflict without rows:", response)
            demand(
                kept_us in self.candidates and kept_us != published_us,
                "a conflict with a time that nobody sent:",
                response,
            )
            self.published_us, self.candidates = kept_us, {kept_us}
            return
        found = response[0].version or 0
        demand(found >= since_version, f"registered as version {found} after {since_version}")
        self.published_us, self.title, self.candidates = published_us, title, {published_us}
        self.version = max(self.version, found)


class Books:
    """One book for each video; ``seen`` counts the outcomes of rows."""

    def __init__(self, plan: Plan, seen: Counter[str]) -> None:
        self._plan = plan
        self._seen = seen
        self._books = [Book() for _ in plan.videos]

    def __getitem__(self, video: int) -> Book:
        return self._books[video]

    def deleted(self, video: int) -> None:
        """Start a new book."""
        self._books[video] = Book(version=self._books[video].version)

    def items(self, rows: Iterable[int]) -> list[dict[str, Any]]:
        """Rows as a client writes them."""
        return [self._plan.rows[i].item(self._plan.videos[self._plan.rows[i].video].id) for i in rows]

    def good(self, rows: Iterable[int]) -> list[PlannedRow]:
        """Those of the rows that the store must hold."""
        return [self._plan.rows[i] for i in rows if not self._plan.rows[i].flaw]

    def mode(self, rows: tuple[int, ...]) -> Mode:
        """The mode of a batch."""
        return self._plan.rows[rows[0]].mode

    def unacknowledged(self) -> list[int]:
        """Rows that were sent and whose outcome is not known."""
        return sorted(i for book in self._books for i in book.sent - book.acknowledged)

    def unsent(self, rows: Iterable[int]) -> tuple[int, ...]:
        """Those of the rows that have not been sent since the video was last deleted."""
        return tuple(i for i in rows if i not in self._books[self._plan.rows[i].video].sent)

    def batches(self, rows: Iterable[int], size: int) -> list[tuple[int, ...]]:
        """The rows in batches of one mode and up to ``size`` rows, in their order."""
        batches: list[tuple[int, ...]] = []
        for mode in ("events", "counters"):
            of_mode = [i for i in rows if self._plan.rows[i].mode == mode]
            batches += [tuple(of_mode[at : at + size]) for at in range(0, len(of_mode), size)]
        return batches

    def sent(self, rows: Iterable[int]) -> None:
        """Note that rows were sent."""
        for i in rows:
            self._books[self._plan.rows[i].video].sent.add(i)

    def took(self, rows: tuple[int, ...], outcome: Outcome) -> tuple[int, ...]:
        """Note the response to a batch; returns the rows that need not be sent again, those refused for good included."""
        refused = {rejection.index: rejection for rejection in outcome.rejections}
        reported = outcome.accepted + outcome.duplicate + outcome.parked + len(outcome.rejections)
        demand(reported == len(rows), f"{len(rows)} rows, but the response reports {reported}:", outcome)
        for name in ("accepted", "duplicate", "parked", "corrected"):
            self._seen[name] += getattr(outcome, name)
        self._seen.update(rejection.reason for rejection in outcome.rejections)
        settled = []
        for position, i in enumerate(rows):
            row, rejection = self._plan.rows[i], refused.get(position)
            if row.flaw:
                demand(row.flaw == "early" or rejection is not None, "a bad row was taken:", row)
            elif rejection is not None:
                demand(rejection.retryable, "a good row was refused:", row, rejection)
                continue
            self._books[row.video].acknowledged.add(i)
            settled.append(i)
        return tuple(settled)
