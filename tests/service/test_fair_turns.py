"""Turns: many requests or long bodies of one client do not hold up another's."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from service.fair_turns import REST, SLICE_S, Turns

MANY, FEW = b"many", b"few"
Work = Callable[[bytes], Awaitable[None]]


def busy(seconds: float = 2 * SLICE_S) -> None:
    """Block the loop, as work does."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        pass


class Floor:
    """Turns, and the order in which clients had them."""

    def __init__(self) -> None:
        self.turns, self.order = Turns(), list[bytes]()

    async def request(self, client: bytes) -> None:
        if not self.turns.free(client):
            await self.turns.wait(client)
        self.order.append(client)
        busy()

    async def body(self, client: bytes, slices: int) -> None:
        for _ in range(slices):
            await self.turns.take(client)
            self.order.append(client)
            busy()

    async def crowd(self) -> None:
        """Make two clients active."""
        for client in (FEW, MANY):
            await self.request(client)
        await asyncio.sleep(0.01)
        self.order.clear()


def test_request_does_not_wait_behind_all_of_another_client() -> None:
    async def work() -> None:
        floor = Floor()
        await floor.crowd()
        flood = [asyncio.create_task(floor.request(MANY)) for _ in range(50)]
        await asyncio.sleep(0)
        await asyncio.create_task(floor.request(FEW))
        assert floor.order.index(FEW) <= 3, floor.order
        await asyncio.gather(*flood)
        assert floor.order.count(MANY) == 50

    asyncio.run(work())


def test_slices_of_a_long_body_let_others_in_between() -> None:
    async def work() -> None:
        floor = Floor()
        bodies = [asyncio.create_task(floor.body(MANY, 20)) for _ in range(4)]
        await asyncio.sleep(0)
        for _ in range(3):
            before = len(floor.order)
            await asyncio.create_task(floor.request(FEW))
            assert floor.order[before:].index(FEW) <= 3, floor.order
        await asyncio.gather(*bodies)

    asyncio.run(work())


def test_two_long_bodies_alternate() -> None:
    async def work() -> None:
        floor = Floor()
        await asyncio.gather(floor.body(MANY, 10), floor.body(FEW, 10))
        assert max(abs(floor.order[:n].count(MANY) - floor.order[:n].count(FEW)) for n in range(20)) <= 2, floor.order

    asyncio.run(work())


def test_single_client_does_not_wait() -> None:
    async def work() -> None:
        turns = Turns()
        for _ in range(20):
            assert turns.free(MANY)
            busy()

    asyncio.run(work())


def test_long_body_rests_while_another_client_waits_and_not_forever() -> None:
    async def work() -> None:
        floor = Floor()
        under_way = True
        floor.turns.others = lambda client: client == MANY and under_way
        body = asyncio.create_task(floor.body(MANY, 8))
        began = time.perf_counter()
        await asyncio.sleep(0.5 * REST * 2 * SLICE_S)
        assert len(floor.order) <= 2, floor.order
        under_way = False
        await asyncio.sleep(0.001)
        while len(floor.order) < 4:
            await asyncio.sleep(0.001)
        under_way = True
        await body
        assert time.perf_counter() - began > 3 * REST * 2 * SLICE_S, "it did not rest"

    asyncio.run(work())


def test_client_with_one_request_does_not_rest() -> None:
    async def work() -> None:
        floor = Floor()
        await floor.crowd()
        floor.turns.others = lambda client: True
        first = asyncio.create_task(floor.request(FEW))
        second = asyncio.create_task(floor.request(FEW))
        began = time.perf_counter()
        await asyncio.gather(first, second)
        assert time.perf_counter() - began < REST * 2 * SLICE_S

    asyncio.run(work())


@pytest.mark.parametrize("kind", ["request", "slice"])
def test_cancelled_waiter_holds_up_no_other(kind: str) -> None:
    async def work() -> None:
        floor = Floor()
        await floor.crowd()
        start: Work = floor.request if kind == "request" else lambda client: floor.body(client, 1)
        tasks = [asyncio.ensure_future(start(MANY)) for _ in range(10)]
        await asyncio.sleep(0)
        for task in tasks[2:9]:
            task.cancel()
        done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 5)
        assert sum(isinstance(end, asyncio.CancelledError) for end in done) == 7
        await asyncio.wait_for(floor.request(MANY), 5)

    asyncio.run(work())


def test_batches_in_progress_per_client_are_limited() -> None:
    async def work() -> None:
        turns, inside, most = Turns(), 0, 0

        async def batch() -> None:
            nonlocal inside, most
            async with turns.batch(MANY):
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0.001)
                inside -= 1

        await asyncio.gather(*(batch() for _ in range(20)))
        assert most == 2

    asyncio.run(work())
