"""Circuit breaker around the bank. The breaker measures the bank's queries, and sends no queries while the bank does not answer.

After a query fails, the circuit opens. The failed query is then repeated in the background until the bank answers it. Therefore a bank
that hangs delays only one batch of forecasts, by the deadline of a query. The bank itself enforces this deadline.
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
    """A bank behind a circuit breaker. The durations and failures of the bank's queries are recorded as metrics.

    The circuit breaker is thread-safe if the bank is thread-safe.
    """

    def __init__(self, bank: Bank, metrics: Metrics, retry_s: float = RETRY_S) -> None:
        self._bank = bank
        self._metrics = metrics
        self._retry_s = retry_s
        self._lock = threading.Lock()
        self._down = False
        self._closed = threading.Event()

    @property
    def folder(self) -> Path | None:
        """Folder of an embedded bank, or None for a bank on a server."""
        return getattr(self._bank, "path", None)

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Return the neighbours of each query."""
        return self._timed(lambda: self._bank.search(queries))

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """Return the earlier videos of each creator, keyed by creator id."""
        return self._timed(lambda: self._bank.creator(creator_ids))

    @property
    def down(self) -> bool:
        """Whether the circuit is open. The circuit opens when a query fails, and closes once the bank answers that query."""
        return self._down

    def counts(self) -> dict[str, int]:
        """Return the numbers of videos and trajectories in the bank."""
        if self._down:
            raise BankError(_SILENT)
        return self._bank.counts()

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace videos."""
        self._bank.upsert(videos)

    def remove(self, video_ids: Sequence[str]) -> None:
        """Remove videos."""
        self._bank.remove(video_ids)

    def forget(self, tombstones: Sequence[str]) -> None:
        """Remove deleted videos, given their tombstones instead of their ids."""
        self._bank.forget(tombstones)

    def cache_searches(self, videos: int) -> None:
        """Cache the search results of up to ``videos`` videos, because the same video is often searched for repeatedly."""
        self._bank.cache_searches(videos)

    def optimize(self, progress: Progress | None = None) -> None:
        """Build the bank's index."""
        self._bank.optimize(progress)

    def close(self) -> None:
        """Release the bank."""
        self._closed.set()
        self._bank.close()

    def _raise_if_down(self) -> None:
        if self._down:
            self._metrics.bank_skipped.inc()
            raise BankError(_SILENT)

    def _timed(self, query: Callable[[], T]) -> T:
        self._raise_if_down()
        started = time.perf_counter()
        try:
            return query()
        except BankError as error:
            self._metrics.bank_failures.inc()
            self._open_circuit(query, error)
            raise
        finally:
            self._metrics.bank_seconds.observe(time.perf_counter() - started)

    def _open_circuit(self, query: Callable[[], object], error: BankError) -> None:
        with self._lock:
            if self._down or self._closed.is_set():
                return
            self._down = True
        log.warning("the bank failed; forecasts are made without neighbours", error=str(error))
        threading.Thread(target=self._retry_until_answered, args=(query,), daemon=True, name="bank-retry").start()

    def _retry_until_answered(self, query: Callable[[], object]) -> None:
        while self._down and not self._closed.is_set():
            try:
                self._retry(query)
            except BaseException:
                # Keep this thread alive, because without it the circuit would stay open forever.
                self._metrics.task_deaths.labels("BankRetry").inc()
                log.exception("the retry of the bank failed and is restarted")
                self._closed.wait(self._retry_s)

    def _retry(self, query: Callable[[], object]) -> None:
        while not self._closed.wait(self._retry_s):
            try:
                query()
            except BankError:
                continue
            except Exception:
                # The bank answers, although it refuses this query.
                log.exception("the bank refused a query")
            self._down = False
            log.info("the bank answers again")
            return
