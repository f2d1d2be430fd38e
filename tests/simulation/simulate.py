"""Runs the plan of a seed, reports what went wrong, and shortens a failing plan."""

from __future__ import annotations

import asyncio
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from structlog.testing import capture_logs

from tests.simulation.faults import Server
from tests.simulation.loop import VirtualLoop
from tests.simulation.models import Models
from tests.simulation.plan import Plan
from tests.simulation.verdict import Wrong
from tests.simulation.world import World


@dataclass(frozen=True)
class Life:
    """The result of a world: ``wrong`` is None when everything was right; ``seen`` counts what happened."""

    wrong: str | None
    seen: Counter[str]


def live(plan: Plan, server: Server, models: Models) -> Life:
    """Run a plan on an emptied store."""
    seen: Counter[str] = Counter()

    async def lifetime() -> None:
        world = World(plan, server, models)
        await world.live()
        seen.update(world.seen)

    with capture_logs(), asyncio.Runner(loop_factory=VirtualLoop) as runner:
        # An unexpected end of a task also fails a request, or keeps it from ending.
        runner.get_loop().set_exception_handler(lambda loop, context: None)
        try:
            runner.run(lifetime())
        except Wrong as wrong:
            return Life(str(wrong), seen)
        except Exception:
            return Life(traceback.format_exc(), seen)
    return Life(None, seen)


def shortened(plan: Plan, fails: Callable[[Plan], bool]) -> Plan:
    """A shorter plan that still fails, but not without any one of its steps."""
    size = max(1, len(plan.steps) // 2)
    while True:
        at, before = 0, len(plan.steps)
        while at < len(plan.steps):
            shorter = replace(plan, steps=plan.steps[:at] + plan.steps[at + size :])
            if fails(shorter):
                plan = shorter
            else:
                at += size
        if size > 1:
            size //= 2
        elif len(plan.steps) == before:
            return plan


def report(plan: Plan, server: Server, models: Models) -> str:
    """A failing plan in words: what is wrong, how to repeat it, and the shortest plan that fails."""
    short = shortened(plan, lambda shorter: live(shorter, server, models).wrong is not None)
    wrong = [live(each, server, models).wrong for each in (plan, short)]
    return (
        f"seed {plan.seed}: {wrong[0]}\n"
        f"again: python -m benchmarks.faults.worlds --seed {plan.seed}\n"
        f"{len(plan.steps)} steps; {len(short.steps)} are enough for: {wrong[1]}\n{short}"
    )
