"""A deadline that is kept even if the called library ignores its own timeouts."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import BoundedSemaphore, Thread
from typing import Final, TypeVar

from model.errors import BankError

T = TypeVar("T")

MAX_CALLS: Final = 8
"""Maximum number of concurrent calls. Late calls count even after their callers have given up, so a dead server
cannot cause an unlimited number of threads."""


class Deadlines:
    """Runs calls in daemon threads, so that a late call blocks neither its caller nor the exit of the process."""

    def __init__(self) -> None:
        self._slots = BoundedSemaphore(MAX_CALLS)

    def call(self, function: Callable[[], T], seconds: float, what: str) -> T:
        """Return the function's result, or raise its exception.

        If the function takes longer than ``seconds``, raise BankError. A later result is dropped.
        """
        end = time.monotonic() + seconds
        if not self._slots.acquire(timeout=seconds):
            raise BankError(f"{what}: {MAX_CALLS} earlier calls still wait for the server")
        future: Future[T] = Future()
        Thread(target=self._run, args=(function, future), daemon=True, name="bank-call").start()
        try:
            return future.result(max(0.0, end - time.monotonic()))
        except FutureTimeoutError as error:
            if future.done():
                raise
            raise BankError(f"{what}: no response within {seconds} s") from error

    def _run(self, function: Callable[[], T], future: Future[T]) -> None:
        try:
            result = function()
        except BaseException as error:
            self._slots.release()
            future.set_exception(error)
        else:
            self._slots.release()
            future.set_result(result)
