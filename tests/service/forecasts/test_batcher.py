from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Sequence

import pytest

from service.forecasts.batcher import Batcher
from service.problems import Unavailable


def run(
    compute: Callable[[Sequence[int]], Sequence[int]],
    work: Callable[[Batcher[int, int]], Awaitable[None]],
    *,
    size: int = 8,
    queue: int = 100,
) -> None:
    async def body() -> None:
        batcher = Batcher(compute, size=size, wait_s=0.01, queue=queue)
        batcher.start()
        try:
            await work(batcher)
        finally:
            await batcher.stop()

    asyncio.run(body())


def test_results_belong_to_their_items_and_batches_are_bounded() -> None:
    sizes: list[int] = []

    def compute(items: Sequence[int]) -> Sequence[int]:
        sizes.append(len(items))
        return [item * item for item in items]

    async def work(batcher: Batcher[int, int]) -> None:
        assert await asyncio.gather(*[batcher.submit(i) for i in range(50)]) == [i * i for i in range(50)]

    run(compute, work)
    assert sum(sizes) == 50 and max(sizes) == 8


def test_one_bad_item_fails_alone() -> None:
    def compute(items: Sequence[int]) -> Sequence[int]:
        if 3 in items:
            raise ValueError("three")
        return items

    async def work(batcher: Batcher[int, int]) -> None:
        results = await asyncio.gather(*[batcher.submit(i) for i in range(6)], return_exceptions=True)
        assert [r for r in results if not isinstance(r, BaseException)] == [0, 1, 2, 4, 5]
        assert isinstance(results[3], ValueError)

    run(compute, work)


def test_full_queue_refuses_and_item_of_a_gone_caller_is_dropped() -> None:
    free = threading.Event()
    seen: list[int] = []

    def compute(items: Sequence[int]) -> Sequence[int]:
        free.wait(10)
        seen.extend(items)
        return items

    async def work(batcher: Batcher[int, int]) -> None:
        first = asyncio.create_task(batcher.submit(1))
        await asyncio.sleep(0.05)
        gone, waiting = asyncio.create_task(batcher.submit(2)), asyncio.create_task(batcher.submit(3))
        await asyncio.sleep(0)
        assert batcher.waiting == 2
        with pytest.raises(Unavailable):
            await batcher.submit(4)
        gone.cancel()
        free.set()
        assert await first == 1 and await waiting == 3
        assert 2 not in seen

    run(compute, work, size=1, queue=2)


def test_stop_finishes_the_queue_and_accepts_no_more() -> None:
    free = threading.Event()

    def compute(items: Sequence[int]) -> Sequence[int]:
        free.wait(10)
        return items

    async def work(batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(3)]
        await asyncio.sleep(0.05)
        stop = asyncio.create_task(batcher.stop())
        await asyncio.sleep(0)
        with pytest.raises(Unavailable):
            await batcher.submit(9)
        free.set()
        await stop
        assert await asyncio.gather(*tasks) == [0, 1, 2]

    run(compute, work, size=1)


def test_cancelled_stop_fails_the_queued_items() -> None:
    free = threading.Event()

    def compute(items: Sequence[int]) -> Sequence[int]:
        free.wait(10)
        return items

    async def work(batcher: Batcher[int, int]) -> None:
        tasks = [asyncio.create_task(batcher.submit(i)) for i in range(3)]
        await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await batcher.stop()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(r) for r in results] == [Unavailable] * 3
        free.set()

    run(compute, work, size=1)


def test_reasons_of_release() -> None:
    reasons: list[str] = []

    async def body() -> None:
        batcher: Batcher[int, int] = Batcher(
            lambda items: items, size=4, wait_s=0.02, queue=99, released=reasons.append
        )
        batcher.start()
        await asyncio.gather(*[batcher.submit(i) for i in range(4)])
        assert await batcher.submit(7) == 7
        last = asyncio.create_task(batcher.submit(8))
        await asyncio.sleep(0)
        await batcher.stop()
        assert await last == 8

    asyncio.run(body())
    assert reasons == ["size", "deadline", "stop"]
