"""Replicas, their network, and the requests under way: how things happen, and in which order."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from service.problems import Unavailable
from service.settings import Settings
from tests.simulation.faults import Fate, Network, Server
from tests.simulation.models import Models
from tests.simulation.plan import Plan
from tests.simulation.replica import Replica, own_tasks
from tests.simulation.verdict import demand

SETTLE_S = 0.01
"""Simulated seconds in which a replica does all that it can do without news from the network."""
RECOVERY_S = 2
"""Simulated seconds after the last trouble in which a replica must have found by itself that the store answers."""
LONGEST_S = 60
"""Simulated seconds in which every request must have ended."""


@dataclass(slots=True)
class Call:
    """A request under way; how to judge its answer, and whether its replica has an excuse to refuse it."""

    name: str
    replica: Replica
    task: asyncio.Task[Any]
    judge: Callable[[Any], object]
    excused: Callable[[], bool]


class Stage:
    """Nothing moves on it but by these methods; needs a running loop. ``seen`` counts what happened."""

    def __init__(self, plan: Plan, server: Server, models: Models, seen: Counter[str]) -> None:
        own_tasks(asyncio.get_running_loop())
        self.settings = Settings(bundle=Path("unused"), **plan.settings)
        self.network = Network(server, seen)
        self.replicas = [Replica(i, self.settings, models, self.network) for i in range(plan.replicas)]
        self._seen = seen
        self._calls: list[Call] = []
        # No world may depend on the one before it, and functions survive FLUSHALL.
        server.execute([["FLUSHALL"], ["FUNCTION", "FLUSH"]])
        for replica in self.replicas:
            replica.start()

    def begin(
        self, name: str, replica: Replica, work: Coroutine[Any, Any, Any], judge: Callable[[Any], object]
    ) -> None:
        """Send a request to a replica; ``judge`` is given its result, unless it fails or the replica dies."""
        self._calls.append(Call(name, replica, replica.spawn(work), judge, self.excuse(replica)))

    def excuse(self, replica: Replica) -> Callable[[], bool]:
        """Whether a request that begins now may be refused: the replica was in trouble before, or was since."""
        troubled, failures = replica.number in self.network.troubled, self.network.failures[replica.number]
        return lambda: troubled or self.network.failures[replica.number] > failures

    def forget_functions(self) -> None:
        """The store loses our functions; a call that is loading them just then may fail."""
        self.network.server.execute([["FUNCTION", "FLUSH"]])
        for replica in self.replicas:
            self.network.fail(replica.number)

    def start(self, replica: Replica) -> None:
        """A replica comes up, and knows nothing of earlier trouble."""
        self.network.troubled.discard(replica.number)
        replica.start()

    def crash(self, replica: Replica) -> None:
        """A replica dies in the middle of its work."""
        replica.crash()
        self._seen["abandoned"] += sum(call.replica is replica for call in self._calls)
        self._calls = [call for call in self._calls if call.replica is not replica]

    async def settle(self, seconds: float = SETTLE_S) -> None:
        """Let everybody do what they can, and judge what has ended."""
        await asyncio.sleep(seconds)
        ended = [call for call in self._calls if call.task.done()]
        self._calls = [call for call in self._calls if not call.task.done()]
        for call in ended:
            self._judge(call)

    async def drain(self) -> None:
        """Let all that is under way arrive, and all that was asked be answered; what a partition stops is lost."""
        waited_s = 0
        while self.network.pending or self._calls:
            if self.network.pending:
                message = self.network.pending[0]
                self.network.deliver(message, Fate.LOST if message.replica in self.network.cuts else Fate.PASS)
                await self.settle()
            else:
                await self.settle(1)
                waited_s += 1
                demand(waited_s < LONGEST_S, "requests without an end:", *(call.name for call in self._calls))

    async def peace(self) -> None:
        """Drain, and leave every replica that sees the store in peace until it must have found that out."""
        await self.drain()
        recovering = self.network.troubled - self.network.cuts.keys()
        if recovering:
            ends_s = asyncio.get_running_loop().time() + RECOVERY_S
            while asyncio.get_running_loop().time() < ends_s:
                await self.settle(RECOVERY_S / 20)
                await self.drain()
            self.network.troubled -= recovering

    async def alone(self, replica: Replica, work: Coroutine[Any, Any, Any], fates: list[Fate] | None = None) -> Any:
        """The result of a request that nothing else happens beside; its messages meet ``fates``, then no trouble."""
        task = replica.spawn(work)
        await asyncio.sleep(SETTLE_S)
        waited_s = 0
        while not task.done():
            if self.network.pending:
                self.network.deliver(self.network.pending[0], fates.pop(0) if fates else Fate.PASS, 1)
                await asyncio.sleep(SETTLE_S)
            else:
                await asyncio.sleep(1)
                waited_s += 1
                demand(waited_s < LONGEST_S, "a request without an end")
        return task.result()

    def _judge(self, call: Call) -> None:
        try:
            call.judge(call.task.result())
        except Unavailable as error:
            self._seen["unavailable"] += 1
            demand(call.excused(), f"{call.name}: refused although nothing had failed:", error)
