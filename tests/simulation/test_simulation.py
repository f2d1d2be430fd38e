"""Worlds with faults end equal to a serial oracle, and a service that is not exact is detected."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.features.tokens import Tokens
from model.mhp.state_pool import StatePool
from service.ingest.group_commit import GroupCommitQueue
from service.problems import Unavailable
from service.store import functions
from service.store.redis.connection import RedisConnection
from service.store.redis.function_library import FunctionLibrary
from service.store.rows.outcome import Outcome
from service.store.rows.row_batch import RowBatch
from service.store.snapshot import Snapshot
from service.store.snapshot_cache import SnapshotCache
from tests.simulation.draw import draw
from tests.simulation.faults import Server
from tests.simulation.models import FakeModels, Models, RealModels
from tests.simulation.plan import PlannedRow
from tests.simulation.simulate import live, report, shortened

pytestmark = pytest.mark.slow

WORLDS = 250
REAL_WORLDS = 60
ALWAYS_SEEN = {
    "Send",
    "Resend",
    "SendOnce",
    "SendWrong",
    "Register",
    "Predict",
    "Delete",
    "Ask",
    "Deliver",
    "Wait",
    "Partition",
    "Crash",
    "Start",
    "Skew",
    "Switch",
    "Amnesia",
    "pass",
    "lost",
    "unheard",
    "torn",
    "too late",
    "abandoned",
    "accepted",
    "duplicate",
    "parked",
    "corrected",
    "invalid",
    "before_publication",
    "mode_conflict",
    "parking_full",
    "unavailable",
    "conflict",
    "forecast",
    "as of bins",
    "stale",
    "switched",
}
"""Events that must occur in a few hundred worlds; otherwise the test proves less than it claims."""


@pytest.fixture(scope="module")
def real_models(mini_bundle: Path) -> Models:
    return RealModels(mini_bundle)


def lived(seeds: range, server: Server, models: Models) -> Counter[str]:
    seen: Counter[str] = Counter()
    for seed in seeds:
        plan = draw(seed)
        life = live(plan, server, models)
        if life.wrong is not None:
            pytest.fail(report(plan, server, models))
        seen += life.seen
    return seen


def test_worlds_end_equal_to_the_oracle(server: Server) -> None:
    seen = lived(range(WORLDS), server, FakeModels())
    assert ALWAYS_SEEN - seen.keys() == set()


def test_worlds_with_a_real_model_end_equal_to_the_oracle(server: Server, real_models: Models) -> None:
    seen = lived(range(REAL_WORLDS), server, real_models)
    assert seen["rollbacks"] > 0 and seen["evictions"] > 0


def test_a_seed_gives_one_order_of_events(server: Server) -> None:
    """The store may hold anything from the world before, which stops anywhere when it fails."""
    for seed in range(20):
        lives = []
        for left in (["FUNCTION", "FLUSH"], ["SET", "left", "over"]):
            server.execute([left])
            lives.append(live(draw(seed), server, FakeModels()))
        assert lives[0] == lives[1]


def lua(old: str, new: str) -> Callable[[pytest.MonkeyPatch], None]:
    def patch(monkeypatch: pytest.MonkeyPatch) -> None:
        library = functions.library()
        assert old in library.source
        tag = hashlib.sha256(new.encode()).hexdigest()[:12]
        broken = FunctionLibrary(library.source.replace(old, new).replace(library.tag, tag), tag)
        monkeypatch.setattr(functions, "library", lambda: broken)

    return patch


def acknowledge_anyway(monkeypatch: pytest.MonkeyPatch) -> None:
    write = GroupCommitQueue.write

    async def lie(self: GroupCommitQueue, batch: RowBatch) -> Outcome:
        try:
            return await write(self, batch)
        except Unavailable:
            return Outcome(accepted=len(batch))

    monkeypatch.setattr(GroupCommitQueue, "write", lie)


def trust_the_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    get = SnapshotCache.get

    async def cached(self: SnapshotCache, video_id: str) -> tuple[Snapshot | None, bool]:
        known = self._known.get(video_id)
        return (known, False) if known is not None else await get(self, video_id)

    monkeypatch.setattr(SnapshotCache, "get", cached)


def never_recover(monkeypatch: pytest.MonkeyPatch) -> None:
    async def give_up(self: RedisConnection) -> None:
        pass

    monkeypatch.setattr(RedisConnection, "_until_it_replies", give_up)


def ignore_ids(monkeypatch: pytest.MonkeyPatch) -> None:
    item = PlannedRow.item

    def without_id(self: PlannedRow, video_id: str) -> dict[str, Any]:
        return {name: value for name, value in item(self, video_id).items() if name != "id"}

    monkeypatch.setattr(PlannedRow, "item", without_id)


def never_roll_back(monkeypatch: pytest.MonkeyPatch) -> None:
    read = StatePool.read

    def blind(self: StatePool, video_ids: Sequence[str], tokens: Tokens) -> Any:
        return read(self, video_ids, replace(tokens, prefix=np.ones_like(tokens.prefix)))

    monkeypatch.setattr(StatePool, "read", blind)


BREAKAGES = {
    "ids are ignored": ignore_ids,
    "the last counter wins": lua("if value > cell.value then cell.value = value end", "cell.value = value"),
    "versions start again": lua("math.max(meta[VERSION] + 1, now_us)", "meta[VERSION] + 1"),
    "rows are merged by an old publication time": lua("if expected and not (", "if expected and false and ("),
    "rows that were not stored are acknowledged": acknowledge_anyway,
    "the cache is not compared with the store": trust_the_cache,
    "a replica never notices that the store is back": never_recover,
    "late rows do not reach the state": never_roll_back,
}


@pytest.mark.parametrize("breakage", BREAKAGES)
def test_a_broken_service_is_detected(
    breakage: str, server: Server, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    patch = BREAKAGES[breakage]
    patch(monkeypatch)
    models: Models = request.getfixturevalue("real_models") if patch is never_roll_back else FakeModels()
    wrong = next((plan for seed in range(WORLDS) if live(plan := draw(seed), server, models).wrong is not None), None)
    assert wrong is not None, "no world detects it"
    short = shortened(wrong, lambda shorter: live(shorter, server, models).wrong is not None)
    assert len(short.steps) <= 12
    assert f"--seed {wrong.seed}" in report(short, server, models)
