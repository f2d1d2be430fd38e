"""Replicas, their network, and the requests under way: what happens in which order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.problems import Unavailable
from service.settings import Settings
from tests.simulation.faults import Delivery, Network, Server
from tests.simulation.models import Models
from tests.simulation.plan import Plan
from tests.simulation.replica import Replica, own_tasks
from tests.simulation.verdict import demand

SETTLE_S = 0.01
"""Simulated seconds in which a replica does everything that it can do without messages."""
RECOVERY_S = 2
"""Simulated seconds after the last trouble until a replica must have found out by itself that the store answers."""
LONGEST_S = 60
"""Simulated seconds in which every request must have ended."""


@dataclass(slots=True)
class Call:
    """A request under way, how to judge its response, and whether its replica may refuse it."""

    name: str
    replica: Replica
    task: asyncio.Task[Any]
    judge: Callable[[Any], object]
    excused: Callable[[], bool]


class Stage:
    """Everything that happens, happens in these methods; needs a running loop. ``seen`` counts what happened."""

    def __init__(self, plan: Plan, server: Server, models: Models, seen: Counter[str]) -> None:
        own_tasks(asyncio.get_running_loop())
        self.settings = Settings(bundle=Path("unused"), **plan.settings)
        self.network = Network(server, seen)
        self.replicas = [Replica(i, self.settings, models, self.network) for i in range(plan.replicas)]
        self._seen = seen
        self._calls: list[Call] = []
        # No world may depend on the one before it, and Redis functions survive FLUSHALL.
        server.execute([["FLUSHALL"], ["FUNCTION", "FLUSH"]])
        for replica in self.replicas:
            replica.start()

    def begin(
        self, name: str, replica: Replica, work: Coroutine[Any, Any, Any], judge: Callable[[Any], object]
    ) -> None:
        """Send a request to a replica; ``judge`` gets its result, unless it fails or the replica crashes."""
        self._calls.append(Call(name, replica, replica.spawn(work), judge, self.excuse(replica)))

    def excuse(self, replica: Replica) -> Callable[[], bool]:
        """Whether a request that starts now may be refused: the replica was in trouble before, or has been since."""
        troubled, failures = replica.number in self.network.troubled, self.network.failures[replica.number]
        return lambda: troubled or self.network.failures[replica.number] > failures

    def forget_functions(self) -> None:
        """The store loses our functions; a call that is just loading them may fail."""
        self.network.server.execute([["FUNCTION", "FLUSH"]])
        for replica in self.replicas:
            self.network.fail(replica.number)

    def start(self, replica: Replica) -> None:
        """A replica starts, and knows nothing of earlier trouble."""
        self.network.troubled.discard(replica.number)
        replica.start()

    def crash(self, replica: Replica) -> None:
        """A replica crashes in the middle of its work."""
        replica.crash()
        self._seen["abandoned"] += sum(call.replica is replica for call in self._calls)
        self._calls = [call for call in self._calls if call.replica is not replica]

    async def settle(self, seconds: float = SETTLE_S) -> None:
        """Let all replicas do what they can, and judge the requests that have ended."""
        await asyncio.sleep(seconds)
        ended = [call for call in self._calls if call.task.done()]
        self._calls = [call for call in self._calls if not call.task.done()]
        for call in ended:
            self._judge(call)

    async def drain(self) -> None:
        """Deliver all messages and finish all requests; messages that a partition blocks are lost."""
        waited_s = 0
        while self.network.pending or self._calls:
            if self.network.pending:
                message = self.network.pending[0]
                self.network.deliver(message, Delivery.LOST if message.replica in self.network.cuts else Delivery.PASS)
                await self.settle()
            else:
                await self.settle(1)
                waited_s += 1
                demand(waited_s < LONGEST_S, "requests that do not end:", *(call.name for call in self._calls))

    async def peace(self) -> None:
        """Drain, then wait until every connected replica must have found out that the store answers."""
        await self.drain()
        recovering = self.network.troubled - self.network.cuts.keys()
        if recovering:
            ends_s = asyncio.get_running_loop().time() + RECOVERY_S
            while asyncio.get_running_loop().time() < ends_s:
                await self.settle(RECOVERY_S / 20)
                await self.drain()
            self.network.troubled -= recovering

    async def alone(
        self, replica: Replica, work: Coroutine[Any, Any, Any], deliveries: list[Delivery] | None = None
    ) -> Any:
        """The result of a request during which nothing else happens; ``deliveries``: of its first messages, the others arrive."""
        task = replica.spawn(work)
        await asyncio.sleep(SETTLE_S)
        waited_s = 0
        while not task.done():
            if self.network.pending:
                self.network.deliver(self.network.pending[0], deliveries.pop(0) if deliveries else Delivery.PASS, 1)
                await asyncio.sleep(SETTLE_S)
            else:
                await asyncio.sleep(1)
                waited_s += 1
                demand(waited_s < LONGEST_S, "a request that does not end")
        return task.result()

    def _judge(self, call: Call) -> None:
        try:
            call.judge(call.task.result())
        except Unavailable as error:
            self._seen["unavailable"] += 1
            demand(call.excused(), f"{call.name}: refused although nothing had failed:", error)
