"""Collects single items into batches, which one worker thread computes."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, Literal, TypeVar

import structlog

from service.problems import Unavailable

log = structlog.get_logger(__name__)

T = TypeVar("T")
R = TypeVar("R")

Reason = Literal["size", "deadline", "stop"]
"""Reason why a batch was released.

``size``: the batch was full.
``deadline``: the batch's first item had waited long enough.
``stop``: the service is stopping.
"""


class Batcher(Generic[T, R]):
    """Runs ``compute`` on batches of up to ``size`` items. The first item of a batch waits at most ``wait_s`` for others.

    While one batch is computed, the next one fills up. Therefore batches grow with the load. An item whose caller has been cancelled is
    dropped before it is computed. If a batch fails, its items are computed one by one, so that one item cannot make the others fail.
    ``queue`` is the maximum number of waiting items. ``released`` is called for each batch, with the reason why the batch was released.
    """

    def __init__(
        self,
        compute: Callable[[Sequence[T]], Sequence[R]],
        *,
        size: int,
        wait_s: float,
        queue: int,
        released: Callable[[Reason], None] = lambda reason: None,
    ) -> None:
        self._compute, self._released = compute, released
        self._size, self._wait_s, self._queue = size, wait_s, queue
        self._pending: deque[tuple[float, T, asyncio.Future[R]]] = deque()
        self._some, self._full = asyncio.Event(), asyncio.Event()
        self.on_death: Callable[[str], None] = lambda name: None
        self._stopping = False
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="m3tr-model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Start computing queued items. Call this inside a running event loop."""
        self._task = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Accept no more items, compute the queued ones, and end.

        If ``stop`` is cancelled, the callers of queued items get Unavailable.
        """
        self._stopping = True
        self._some.set()
        self._full.set()
        task, self._task = self._task, None
        try:
            if task is not None:
                await task
        finally:
            for _, _, future in self._pending:
                if not future.done():
                    future.set_exception(Unavailable("the service is stopping"))
            self._thread.shutdown(wait=False)

    @property
    def alive(self) -> bool:
        """Whether the task that processes items is running."""
        return self._task is not None and not self._task.done()

    async def between(self, action: Callable[[], object]) -> None:
        """Run an action in the worker thread, between two batches."""
        await asyncio.get_running_loop().run_in_executor(self._thread, action)

    @property
    def waiting(self) -> int:
        """Number of items in the queue."""
        return len(self._pending)

    async def submit(self, item: T) -> R:
        """Queue an item and return its result. Raises Unavailable if the queue is full or the service is stopping."""
        if self._stopping:
            raise Unavailable("the service is stopping")
        if len(self._pending) >= self._queue:
            raise Unavailable("too many forecasts are waiting", part="model")
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._pending.append((time.monotonic(), item, future))
        self._some.set()
        if len(self._pending) >= self._size:
            self._full.set()
        return await future

    async def _supervise(self) -> None:
        while True:
            try:
                return await self._run()
            except Exception:
                log.exception("the queue of forecasts failed and is restarted")
            self.on_death("Batcher")

    async def _run(self) -> None:
        while True:
            await self._some.wait()
            if not self._pending:
                if self._stopping:
                    return
                self._some.clear()
                continue
            self._released(await self._until_release())
            batch = [self._pending.popleft() for _ in range(min(self._size, len(self._pending)))]
            try:
                await self._compute_batch([(item, future) for _, item, future in batch if not future.done()])
            finally:
                for _, _, future in batch:
                    if not future.done():
                        future.set_exception(Unavailable("the service is stopping"))

    async def _until_release(self) -> Reason:
        """Wait until the batch should be released. Return the reason."""
        if len(self._pending) < self._size and not self._stopping:
            self._full.clear()
            left_s = self._pending[0][0] + self._wait_s - time.monotonic()
            if left_s > 0:
                try:
                    async with asyncio.timeout(left_s):
                        await self._full.wait()
                except TimeoutError:
                    return "deadline"
        if len(self._pending) >= self._size:
            return "size"
        return "stop" if self._stopping else "deadline"

    async def _compute_batch(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            results = await loop.run_in_executor(self._thread, self._compute, [item for item, _ in batch])
        except Exception as error:
            if len(batch) == 1:
                if not batch[0][1].done():
                    batch[0][1].set_exception(error)
                return
            for pair in batch:
                await self._compute_batch([pair])
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
