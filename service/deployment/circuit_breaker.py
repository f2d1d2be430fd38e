"""The bank as the service uses it: every question measured, and none asked while it does not answer.

A bank that hangs costs one forecast batch its deadline, not each of them: after a failure the bank is left alone, and the
question that failed is put to it again and again in the background, until it is answered. The deadline is the bank's own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TypeVar

import structlog

from model.bank import Bank, BankQuery, BankVideo, Candidate, PastVideo
from model.bank.interface import Progress
from model.errors import BankError
from service.metrics import Metrics

log = structlog.get_logger(__name__)

T = TypeVar("T")

RETRY_S: Final = 0.5
"""Seconds between two attempts to reach a bank that failed."""


_SILENT: Final = "the bank failed and has not answered since"


class BankCircuitBreaker:
    """Another bank, with the time and the failures of its questions in the metrics. Thread-safe where that one is."""

    def __init__(self, bank: Bank, metrics: Metrics, retry_s: float = RETRY_S) -> None:
        self._bank = bank
        self._metrics = metrics
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._down = False
        self._closed = threading.Event()

    @property
    def folder(self) -> Path | None:
        """Where an embedded bank has its files; None for another."""
        return getattr(self._bank, "path", None)

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Neighbours of each query."""
        return self._timed(lambda: self._bank.search(queries))

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """Earlier videos of each creator."""
        return self._timed(lambda: self._bank.creator(creator_ids))

    @property
    def down(self) -> bool:
        """Whether a question failed, and none was answered since."""
        return self._down

    def counts(self) -> dict[str, int]:
        """Number of videos and trajectories."""
        if self._down:
            raise BankError(_SILENT)
        return self._bank.counts()

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace videos."""
        self._bank.upsert(videos)

    def remove(self, video_ids: Sequence[str]) -> None:
        """Forget videos."""
        self._bank.remove(video_ids)

    def forget(self, tombstones: Sequence[str]) -> None:
        """Forget videos of which only the tombstone is known."""
        self._bank.forget(tombstones)

    def cache_searches(self, videos: int) -> None:
        """Keep what is near videos that ask again and again."""
        self._bank.cache_searches(videos)

    def optimize(self, progress: Progress | None = None) -> None:
        """Build the index."""
        self._bank.optimize(progress)

    def close(self) -> None:
        """Release the bank."""
        self._closed.set()
        self._bank.close()

    def _refuse_while_down(self) -> None:
        if self._down:
            self._metrics.bank_skipped.inc()
            raise BankError(_SILENT)

    def _timed(self, question: Callable[[], T]) -> T:
        self._refuse_while_down()
        started = time.perf_counter()
        try:
            return question()
        except BankError as error:
            self._metrics.bank_failures.inc()
            self._leave_alone(question, error)
            raise
        finally:
            self._metrics.bank_seconds.observe(time.perf_counter() - started)

    def _leave_alone(self, question: Callable[[], object], error: BankError) -> None:
        with self._lock:
            if self._down or self._closed.is_set():
                return
            self._down = True
        log.warning("the bank failed; forecasts go on without neighbours", error=str(error))
        threading.Thread(target=self._keep_asking, args=(question,), daemon=True, name="bank-retry").start()

    def _keep_asking(self, question: Callable[[], object]) -> None:
        while self._down and not self._closed.is_set():
            try:
                self._ask_again(question)
            except BaseException:
                # Without this thread, the bank would never be asked again.
                self._metrics.task_deaths.labels("BankRetry").inc()
                log.exception("what asks the bank again died; it is begun again")
                self._closed.wait(self._retry_s)

    def _ask_again(self, question: Callable[[], object]) -> None:
        while not self._closed.wait(self._retry_s):
            try:
                question()
            except BankError:
                continue
            except Exception:
                # It answers, if not this question.
                log.exception("the bank refused a question")
            self._down = False
            log.info("the bank answers again")
            return
