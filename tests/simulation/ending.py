"""The end of a world: all trouble is over, all rows are acknowledged, and everything equals the oracle."""

from __future__ import annotations

import random
from typing import Any

from service.context import Context
from service.forecasts.forecast_result import ForecastResult
from service.problems import Conflict
from service.times import iso
from tests.simulation import oracle
from tests.simulation.answers import Judge
from tests.simulation.books import Book, Books
from tests.simulation.models import Models, comparable
from tests.simulation.plan import HORIZONS_US, NOW_US, Plan
from tests.simulation.replica import Replica
from tests.simulation.stage import Stage
from tests.simulation.verdict import demand

ATTEMPTS = 20
TITLE = "the last title"
HOUR_US = 3_600_000_000

Told = list[tuple[Any, ...]]


class Ending:
    """Ends all trouble in a world, and compares it with the oracle."""

    def __init__(self, plan: Plan, stage: Stage, books: Books, judge: Judge, models: Models) -> None:
        self._plan = plan
        self._stage = stage
        self._books = books
        self._judge = judge
        self._models = models

    async def compare(self) -> None:
        """Raise Wrong where the store or a forecast differs from the oracle."""
        await self._come_to_rest()
        for video, planned in enumerate(self._plan.videos):
            for replica in self._stage.replicas:
                await self._store(replica, planned.id, self._books[video])
        first, *others = [await self._forecasts(replica) for replica in self._stage.replicas]
        for other in others:
            demand(other == first, "the replicas' forecasts differ:", first, other)
        serial = await self._serial()
        demand(first == serial, "not the forecasts of a serial service:", first, serial)

    async def _come_to_rest(self) -> None:
        self._stage.network.cuts.clear()
        await self._stage.peace()
        for replica in self._stage.replicas:
            if replica.context is None:
                self._stage.start(replica)
        for video in range(len(self._plan.videos)):
            await self._register(self._stage.replicas[video % len(self._stage.replicas)], video)
        chance = random.Random(self._plan.seed)
        for attempt in range(ATTEMPTS):
            rows = self._books.unacknowledged()
            chance.shuffle(rows)
            replica = self._stage.replicas[attempt % len(self._stage.replicas)]
            for batch in self._books.batches(rows, 10):
                await self._send(replica, batch)
        demand(not self._books.unacknowledged(), "rows that are never taken:", self._books.unacknowledged())

    async def _register(self, replica: Replica, video: int) -> None:
        book, planned = self._books[video], self._plan.videos[video]
        published_us = planned.published[0] if book.published_us is None else book.published_us
        try:
            await self._put(replica, video, published_us)
        except Conflict as conflict:
            # A registration whose response was lost came before the rows.
            book.registered(0, published_us, TITLE, conflict)
            assert book.published_us is not None
            await self._put(replica, video, book.published_us)

    async def _put(self, replica: Replica, video: int, published_us: int) -> None:
        book = self._books[video]
        body = {"published_at": iso(published_us), "title": TITLE}
        response = await self._stage.alone(
            replica, _context(replica).videos.register(self._plan.videos[video].id, body)
        )
        book.registered(book.version, published_us, TITLE, response)

    async def _send(self, replica: Replica, rows: tuple[int, ...]) -> None:
        work = _context(replica).ingest.take(self._books.mode(rows), self._books.items(rows))
        self._books.took(rows, await self._stage.alone(replica, work))

    async def _store(self, replica: Replica, video_id: str, book: Book) -> None:
        snapshot = await self._stage.alone(replica, _context(replica).store.read(video_id))
        demand(snapshot is not None, f"{video_id} is gone")
        published_us = snapshot.video.published_us
        demand(published_us == book.published_us, f"{video_id}: published at {published_us}, not {book.published_us}")
        demand(snapshot.video.title == book.title, f"{video_id}: {snapshot.video.title}, not {book.title}")
        demand(snapshot.version >= book.version, f"{video_id}: version {snapshot.version} after {book.version}")
        found = oracle.observed(snapshot)
        wanted = oracle.expected(self._books.good(book.acknowledged), published_us)
        wrong = oracle.outside(found.cells, wanted.cells, wanted.cells)
        demand(found == wanted, f"{video_id}: not the serial oracle's histogram:", *wrong, found, wanted)

    async def _forecasts(self, replica: Replica) -> Told:
        """Every video's forecast at two times, by one model."""
        replica.switch(self._plan.seed % 2)
        answers: Told = []
        for video in self._plan.videos:
            for at_us in (video.published[-1] + HOUR_US, NOW_US):
                work = _context(replica).predictions.forecast(video.id, at_us, HORIZONS_US)
                answer: ForecastResult = await self._stage.alone(replica, work)
                self._judge.computed(answer)
                answers.append((video.id, answer.as_of_bins, answer.model_version, *comparable(answer.forecast)))
        return answers

    async def _serial(self) -> Told:
        """The forecasts of a service that gets every row once, in order of time, into an empty store."""
        self._stage.network.server.execute([["FLUSHALL"]])
        fresh = Replica(0, self._stage.settings, self._models, self._stage.network)
        fresh.start()
        for video, planned in enumerate(self._plan.videos):
            book = self._books[video]
            assert book.published_us is not None
            body = {"published_at": iso(book.published_us), "title": book.title}
            await self._stage.alone(fresh, _context(fresh).videos.register(planned.id, body))
            good = [i for i in book.acknowledged if not self._plan.rows[i].flaw]
            good.sort(key=lambda i: (self._plan.rows[i].time_us, i))
            for batch in self._books.batches(good, 1000):
                work = _context(fresh).ingest.take(self._books.mode(batch), self._books.items(batch))
                await self._stage.alone(fresh, work)
        return await self._forecasts(fresh)


def _context(replica: Replica) -> Context:
    assert replica.context is not None
    return replica.context
