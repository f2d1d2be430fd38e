"""A deadline that holds whatever the called library does about its own."""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from threading import BoundedSemaphore, Thread
from typing import Final, TypeVar

from model.errors import BankError

T = TypeVar("T")

IN_FLIGHT: Final = 8
"""Calls under way at once, the late ones that nobody waits for included: a dead server cannot pile up threads."""


class Deadlines:
    """Runs calls in daemon threads, so that a late one holds up neither its caller nor the exit of the process."""

    def __init__(self) -> None:
        self._slots = BoundedSemaphore(IN_FLIGHT)

    def call(self, function: Callable[[], T], seconds: float, what: str) -> T:
        """The function's result, or its exception, or a BankError after ``seconds``; a late result is dropped."""
        end = time.monotonic() + seconds
        if not self._slots.acquire(timeout=seconds):
            raise BankError(f"{what}: {IN_FLIGHT} earlier calls still wait for the server")
        future: Future[T] = Future()
        Thread(target=self._run, args=(function, future), daemon=True, name="bank-call").start()
        try:
            return future.result(max(0.0, end - time.monotonic()))
        except FutureTimeoutError as error:
            if future.done():
                raise
            raise BankError(f"{what}: no answer within {seconds} s") from error

    def _run(self, function: Callable[[], T], future: Future[T]) -> None:
        try:
            result = function()
        except BaseException as error:
            self._slots.release()
            future.set_exception(error)
        else:
            self._slots.release()
            future.set_result(result)
