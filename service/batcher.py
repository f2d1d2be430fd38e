"""Single requests, computed together: a queue in front of one worker thread."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from service.problems import Unavailable

T = TypeVar("T")
R = TypeVar("R")


class Batcher(Generic[T, R]):
    """Runs ``compute`` on up to ``size`` items, waiting at most ``wait_s`` after the first for company.

    While a batch is computed the next one fills up, so load makes batches by itself. An item whose caller has gone is
    dropped unseen. When a batch fails its items are computed one by one, so that one item cannot fail others.
    """

    def __init__(self, compute: Callable[[Sequence[T]], Sequence[R]], *, size: int, wait_s: float, queue: int) -> None:
        self._compute = compute
        self._size, self._wait_s = size, wait_s
        self._queue: asyncio.Queue[tuple[T, asyncio.Future[R]]] = asyncio.Queue(queue)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="m3tr-model")
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take items; needs a running loop."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """Finish nothing more; callers that still wait are told that the service stops."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        while not self._queue.empty():
            _, future = self._queue.get_nowait()
            if not future.done():
                future.set_exception(Unavailable("the service is stopping"))
        self._thread.shutdown(wait=True)

    async def between(self, action: Callable[[], None]) -> None:
        """Run an action in the worker thread, between two batches."""
        await asyncio.get_running_loop().run_in_executor(self._thread, action)

    @property
    def waiting(self) -> int:
        """Items in the queue."""
        return self._queue.qsize()

    async def submit(self, item: T) -> R:
        """The item's result; raises Unavailable when the queue is full."""
        future: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        try:
            self._queue.put_nowait((item, future))
        except asyncio.QueueFull:
            raise Unavailable("too many forecasts are waiting", part="model") from None
        return await future

    async def _run(self) -> None:
        while True:
            batch = [await self._queue.get()]
            try:
                await self._fill(batch)
                await self._answer([(item, future) for item, future in batch if not future.done()])
            finally:
                for _, future in batch:
                    if not future.done():
                        future.set_exception(Unavailable("the service is stopping"))

    async def _fill(self, batch: list[tuple[T, asyncio.Future[R]]]) -> None:
        deadline = asyncio.get_running_loop().time() + self._wait_s
        while len(batch) < self._size:
            if not self._queue.empty():
                batch.append(self._queue.get_nowait())
                continue
            left_s = deadline - asyncio.get_running_loop().time()
            if left_s <= 0:
                return
            try:
                batch.append(await asyncio.wait_for(self._queue.get(), left_s))
            except TimeoutError:
                return

    async def _answer(self, batch: Sequence[tuple[T, asyncio.Future[R]]]) -> None:
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
                await self._answer([pair])
            return
        for (_, future), result in zip(batch, results, strict=True):
            if not future.done():
                future.set_result(result)
