"""The bank as the service uses it: every question measured. Its deadline is the bank's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from model.bank import Bank, BankQuery, BankVideo, Candidate, PastVideo
from model.bank.interface import Progress
from model.errors import BankError
from service.metrics import Metrics

T = TypeVar("T")


class WatchedBank:
    """Another bank, with the time and the failures of its questions in the metrics."""

    def __init__(self, bank: Bank, metrics: Metrics) -> None:
        self._bank = bank
        self._metrics = metrics

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Neighbours of each query."""
        return self._timed(lambda: self._bank.search(queries))

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """Earlier videos of each creator."""
        return self._timed(lambda: self._bank.creator(creator_ids))

    def counts(self) -> dict[str, int]:
        """Number of videos and trajectories."""
        return self._bank.counts()

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace videos."""
        self._bank.upsert(videos)

    def optimize(self, progress: Progress | None = None) -> None:
        """Build the index."""
        self._bank.optimize(progress)

    def close(self) -> None:
        """Release the bank."""
        self._bank.close()

    def _timed(self, question: Callable[[], T]) -> T:
        started = time.perf_counter()
        try:
            return question()
        except BankError:
            self._metrics.bank_failures.inc()
            raise
        finally:
            self._metrics.bank_seconds.observe(time.perf_counter() - started)
