"""A world that runs a plan and is then compared with the oracle."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Coroutine
from typing import Any

import orjson

from service.context import Context
from service.forecasts.forecast_result import ForecastResult
from service.problems import Conflict, NotFound, Unavailable
from service.store.store import AppliedRows
from service.times import iso
from tests.simulation import plan
from tests.simulation.answers import Judge
from tests.simulation.books import Books
from tests.simulation.ending import Ending
from tests.simulation.faults import Delivery, Server
from tests.simulation.models import Models
from tests.simulation.plan import HORIZONS_US, Plan, PlannedRow
from tests.simulation.replica import Replica
from tests.simulation.stage import Stage
from tests.simulation.verdict import demand

DELETE_ATTEMPTS = 20


class World:
    """Runs each step and checks its result; needs a running loop. ``seen`` counts what happened."""

    def __init__(self, plan: Plan, server: Server, models: Models) -> None:
        self.seen: Counter[str] = Counter()
        self._plan = plan
        self._stage = Stage(plan, server, models, self.seen)
        self._books = Books(plan, self.seen)
        self._judge = Judge(self._books, self._stage, models, self.seen)
        self._ending = Ending(plan, self._stage, self._books, self._judge, models)

    async def live(self) -> None:
        """Run the plan, end all trouble, compare; raises Wrong."""
        for step in self._plan.steps:
            self.seen[type(step).__name__] += 1
            await self._take(step)
            await self._stage.settle()
        await self._ending.compare()
        for replica in self._stage.replicas:
            self.seen += replica.counts()

    async def _take(self, step: plan.Step) -> None:
        network, replicas = self._stage.network, self._stage.replicas
        match step:
            case plan.Deliver(which, delivery, part):
                movable = network.movable()
                if movable:
                    network.deliver(movable[which % len(movable)], delivery, part)
            case plan.Wait(seconds):
                await self._stage.settle(seconds)
            case plan.Partition(number, cut):
                if cut is None:
                    network.cuts.pop(number, None)
                else:
                    network.cuts[number] = cut
            case plan.Skew(number, skew_us):
                replicas[number].skew_us = skew_us
            case plan.Amnesia():
                self._stage.forget_functions()
            case plan.Start(number):
                if replicas[number].context is None:
                    self._stage.start(replicas[number])
            case _:
                replica = replicas[step.replica]
                if replica.context is not None:
                    await self._ask_of(replica, replica.context, step)

    async def _ask_of(self, replica: Replica, context: Context, step: plan.Step) -> None:
        reachable = replica.number not in self._stage.network.cuts
        match step:
            case plan.Crash():
                self._stage.crash(replica)
            case plan.Switch(_, model):
                replica.switch(model)
            case plan.Send(_, rows, form):
                self._send(replica, context, rows, form)
            case plan.Resend(_, size, order):
                unacknowledged = self._books.unacknowledged()
                random.Random(order).shuffle(unacknowledged)
                for batch in self._books.batches(unacknowledged, size):
                    self._send(replica, context, batch)
            case plan.Ask(_, video, at_us):
                self._ask(replica, context, video, at_us)
            case plan.Register(_, video, published, title):
                await self._stage.drain()
                self._register(replica, context, video, self._plan.videos[video].published[published], f"title {title}")
            case plan.Predict(_, video, rows, whole):
                await self._stage.drain()
                self._predict(replica, context, video, rows, whole)
            case plan.Delete(_, video, deliveries) if reachable:
                await self._delete(replica, context, video, list(deliveries))
            case plan.SendOnce(_, rows) if reachable:
                await self._send_once(replica, context, rows)
            case plan.SendWrong(_, video) if reachable:
                await self._send_wrong(replica, context, video)

    # Rows

    def _send(self, replica: Replica, context: Context, rows: tuple[int, ...], form: plan.Form = "items") -> None:
        if rows:
            self._books.sent(rows)
            mode, items = self._books.mode(rows), self._books.items(rows)
            if form == "items":
                work = context.ingest.take(mode, items)
            elif form == "json":
                work = context.ingest.take_json(mode, orjson.dumps(items))
            else:
                work = context.ingest.take_lines(mode, [orjson.dumps(item) for item in items])
            self._stage.begin(f"rows {rows}", replica, work, lambda outcome: self._books.took(rows, outcome))

    async def _send_once(self, replica: Replica, context: Context, rows: tuple[int, ...]) -> None:
        await self._stage.peace()
        rows = self._books.unsent(rows)
        if rows:
            outcome = await self._stage.alone(replica, context.ingest.take("events", self._books.items(rows)))
            self._books.sent(self._books.took(rows, outcome))

    async def _send_wrong(self, replica: Replica, context: Context, video: int) -> None:
        await self._stage.peace()
        book, planned = self._books[video], self._plan.videos[video]
        fed = sorted({kind for row in self._books.good(book.acknowledged) for kind, _ in row.values})
        if book.published_us is None or not fed:
            return
        mode: plan.Mode = "counters" if planned.modes[fed[0]] == "events" else "events"
        row = PlannedRow(video, mode, planned.published[-1] + 1, ((fed[0], 5),))
        outcome = await self._stage.alone(replica, context.ingest.take(mode, [row.item(planned.id)]))
        reasons = [rejection.reason for rejection in outcome.rejections]
        demand(reasons == ["mode_conflict"], f"{fed[0]} of {planned.id} fed by {mode} as well:", outcome)
        self.seen.update(reasons)

    # Videos

    def _register(self, replica: Replica, context: Context, video: int, published_us: int, title: str) -> None:
        book = self._books[video]
        book.candidates.add(published_us)
        version = book.version

        def judge(response: tuple[AppliedRows, list[str]] | Conflict) -> None:
            self.seen["conflict"] += isinstance(response, Conflict)
            book.registered(version, published_us, title, response)

        body = {"published_at": iso(published_us), "title": title}
        work = _or(Conflict, context.videos.register(self._plan.videos[video].id, body))
        self._stage.begin(f"PUT {video}", replica, work, judge)

    def _predict(self, replica: Replica, context: Context, video: int, rows: tuple[int, ...], whole: bool) -> None:
        book = self._books[video]
        if book.published_us is None:
            return
        known: dict[str, Any] = {"video_id": self._plan.videos[video].id}
        if whole and book.title is not None and book.candidates == {book.published_us}:
            known |= {"published_at": iso(book.published_us), "title": book.title}
        self._books.sent(rows)
        body: dict[str, Any] = {"video": known, "horizons_s": [us // 1_000_000 for us in HORIZONS_US]}
        for batch in self._books.batches(rows, max(len(rows), 1)):
            body[self._books.mode(batch)] = self._books.items(batch)
        check = self._judge.from_now_on(replica, video)

        def judge(response: tuple[ForecastResult, AppliedRows]) -> None:
            answer, applied = response
            taken = applied.outcome.accepted + applied.outcome.duplicate
            demand(taken == len(rows), f"{len(rows)} rows, but the prediction tells of {taken}")
            book.acknowledged.update(rows)
            check(answer)

        async def work() -> tuple[ForecastResult, AppliedRows]:
            return await context.predictions.predict(await context.predictions.parse(body))

        self._stage.begin(f"POST /predict {video}", replica, work(), judge)

    async def _delete(self, replica: Replica, context: Context, video: int, deliveries: list[Delivery]) -> None:
        await self._stage.peace()
        for attempt in range(DELETE_ATTEMPTS):
            excused = self._stage.excuse(replica)
            try:
                await self._stage.alone(replica, context.videos.delete(self._plan.videos[video].id), deliveries)
                break
            except Unavailable as error:
                demand(excused(), "a deletion refused although nothing failed:", error)
                await self._stage.peace()
            except NotFound:
                demand(attempt or self._books[video].published_us is None, "a registered video was not found")
                break
        await self._stage.drain()
        self._books.deleted(video)

    def _ask(self, replica: Replica, context: Context, video: int, at_us: int | None) -> None:
        check = self._judge.from_now_on(replica, video)
        known = self._books[video].published_us is not None

        def judge(response: ForecastResult | NotFound) -> None:
            if isinstance(response, NotFound):
                demand(not known, "a registered video was not found:", video)
            else:
                check(response)

        work = _or(NotFound, context.predictions.forecast(self._plan.videos[video].id, at_us, HORIZONS_US))
        self._stage.begin(f"forecast {video}", replica, work, judge)


async def _or(problem: type[Exception], work: Coroutine[Any, Any, Any]) -> Any:
    """The result, or the problem as a value."""
    try:
        return await work
    except problem as raised:
        return raised
