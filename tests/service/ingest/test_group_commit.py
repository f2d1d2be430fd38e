"""Group commit: batches that are stored together have the same outcome as batches that are stored one after the other."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import astuple, replace
from typing import Any

import redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.ingest.group_commit import COMMITS_IN_FLIGHT, GroupCommitQueue
from service.problems import Unavailable
from service.store import keys
from service.store.commit import GroupCommit
from service.store.rows.outcome import Outcome
from service.store.rows.row import InputRow
from service.store.rows.row_batch import RowBatch
from service.store.rows.row_fields import MAX_COUNT
from service.store.store import Registration, Store
from tests.service.store.test_store import P0, REGISTRATION, S, cells, event, with_store

VIDEOS = ("a", "b", "unregistered")


def counters(at_s: float, video: str, id: str | None, value: int) -> InputRow:
    return InputRow(0, video, P0 + round(at_s * S), "counters", (("share", value), ("like", value)), 0, id)


ROW = st.one_of(
    st.builds(
        event,
        st.floats(-5, 5000),
        st.sampled_from(["view", "like"]),
        st.sampled_from([1, 1, 2, 1000]),
        st.none() | st.sampled_from(["a", "b", "c", "a long one " * 3]),
        st.sampled_from([0, 0, 7]),
        st.sampled_from(VIDEOS),
    ),
    # The largest count fits only alone, so the order of the others does not matter.
    st.builds(
        event, st.floats(0, 9), st.just("view"), st.just(MAX_COUNT), st.sampled_from(["x", "y"]), video=st.just("b")
    ),
    st.builds(counters, st.floats(0, 99), st.sampled_from(VIDEOS), st.none() | st.just("a"), st.integers(0, 9)),
)
BATCHES = st.lists(st.lists(ROW, min_size=1, max_size=12), min_size=1, max_size=5)


def numbered(rows: Sequence[InputRow]) -> list[InputRow]:
    return [replace(row, index=i) for i, row in enumerate(rows)]


def comparable(outcome: Outcome | Exception) -> Any:
    assert isinstance(outcome, Outcome), outcome
    outcome.rejections.sort(key=lambda refused: refused.index)
    return astuple(outcome)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(batches=BATCHES)
def test_a_group_commit_equals_single_commits(empty_redis: str, batches: list[list[InputRow]]) -> None:
    given_batches = [RowBatch.of(numbered(rows)) for rows in batches]

    def run(commits: list[list[RowBatch]]) -> Any:
        async def work(store: Store) -> list[Any]:
            await store.register("a", REGISTRATION)
            await store.register("b", REGISTRATION)
            outcomes = [comparable(outcome) for batch in commits for outcome in await store.ingest(batch)]
            parked = await store.register("unregistered", REGISTRATION)
            snapshots = [await store.read(video) for video in VIDEOS]
            newest = [snapshot.newest_us for snapshot in snapshots if snapshot]
            return [outcomes, newest, parked.parked_applied, parked.parked_rejected]

        with redis.Redis.from_url(empty_redis) as client:
            client.flushall()
        return with_store(empty_redis, work), {video: cells(empty_redis, video) for video in VIDEOS}

    assert run([given_batches]) == run([[batch] for batch in given_batches])


def test_rows_of_a_bin_are_merged() -> None:
    rows = [event(99 + i / 1000, count=2, reach=3) for i in range(500)] + [event(99, "like"), event(99, id="i")]
    batches = [RowBatch.of(rows), RowBatch.of(rows[:10])]
    (share,) = GroupCommit(batches, {"v": P0}).chunks(2000)
    assert share.head["lengths"] == [3] and share.head["expected"] == [P0]
    (plain,) = GroupCommit(batches, {}).chunks(2000)
    assert plain.head["lengths"] == [512] and "expected" not in plain.head


def test_a_call_has_whole_videos() -> None:
    rows = [event(i, id=str(i), video=f"v{i % 7}") for i in range(100)]
    shares = list(GroupCommit([RowBatch.of(rows)]).chunks(20))
    assert [video for share in shares for video in share.videos] == [f"v{i}" for i in range(7)]
    assert all(len(share.videos) == 1 for share in shares)
    assert sum(sum(share.head["lengths"]) for share in shares) == 100


def test_a_fault_of_one_video_fails_only_batches_with_that_video(empty_redis: str) -> None:
    async def work(store: Store) -> list[Any]:
        for video in ("good", "bad"):
            await store.register(video, REGISTRATION)
            await store.apply({video: [event(0, video=video)]})
        with redis.Redis.from_url(empty_redis) as client:
            client.set(keys.video_prefix("bad") + "bins:view:0", "not a hash")
        good, bad = event(1, id="g", video="good"), event(1, id="b", video="bad")
        return list(await store.ingest([RowBatch.of(rows) for rows in ([good], [bad, good], [replace(good, id="h")])]))

    first, second, third = with_store(empty_redis, work)
    assert (second.accepted, second.duplicate) == (0, 1)
    assert [(refused.reason, refused.value) for refused in second.rejections] == [("damaged", "bad")]
    assert (first.accepted, third.accepted) == (1, 1)
    assert cells(empty_redis, "good") == {"0:view": 1, "1:view": 2}


def test_stale_rows_are_sent_again_in_their_batches(empty_redis: str) -> None:
    async def work(store: Store) -> list[Any]:
        await store.register("v", REGISTRATION)
        await store.register("w", REGISTRATION)

        async def elsewhere(other: Store) -> None:
            await other.register("v", Registration(P0 + 2 * S, "{}"))

        await asyncio.to_thread(with_store, empty_redis, elsewhere)
        mine = numbered([event(5.1), event(5.9), event(1), event(3, video="w")])
        return list(await store.ingest([RowBatch.of(mine), RowBatch.of(numbered([event(1), event(6)]))]))

    first, second = with_store(empty_redis, work)
    assert (first.accepted, [refused.index for refused in first.rejections]) == (3, [2])
    assert (second.accepted, [refused.index for refused in second.rejections]) == (1, [0])
    assert cells(empty_redis) == {"3:view": 2, "4:view": 1} and cells(empty_redis, "w") == {"3:view": 1}


class Gated:
    """A store that waits for a permission before each commit, and keeps the sizes of commits."""

    def __init__(self, store: Store) -> None:
        self.store, self.gate, self.commits = store, asyncio.Event(), list[int]()
        self.fault: Exception | None = None

    async def ingest(self, batches: Sequence[RowBatch]) -> list[Outcome | Exception]:
        self.commits.append(len(batches))
        await self.gate.wait()
        if self.fault is not None:
            raise self.fault
        return await self.store.ingest(batches)


def one(i: int) -> RowBatch:
    return RowBatch.of([event(i, id=f"{i}")])


def test_waiting_batches_are_committed_together_and_get_their_own_outcome(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        gated = Gated(store)
        writer = GroupCommitQueue(gated, commit_rows=10, queue_rows=100)  # type: ignore[arg-type]
        calls = [asyncio.create_task(writer.write(one(i % 20))) for i in range(40)]
        await asyncio.sleep(0.01)
        assert len(gated.commits) == COMMITS_IN_FLIGHT and writer.waiting_rows == 40 - sum(gated.commits)
        calls[39].cancel()
        gated.gate.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert isinstance(done[39], asyncio.CancelledError)
        outcomes = [outcome for outcome in done[:39] if isinstance(outcome, Outcome)]
        assert [o.accepted + o.duplicate for o in outcomes] == [1] * 39
        assert sum(o.accepted for o in outcomes) == 20 and max(gated.commits) == 10 and writer.waiting_rows == 0

    with_store(empty_redis, work)


def test_clients_are_stored_in_turn(empty_redis: str) -> None:
    """A client with few rows does not wait for all rows of another client, and each client's rows keep their order."""

    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        order: list[int] = []

        class Watched(Gated):
            async def ingest(self, batches: Sequence[RowBatch], *, park: bool = True) -> list[Outcome | Exception]:
                order.extend(int(batch.times_us[0] - P0) // S for batch in batches)
                return await super().ingest(batches)

        gated = Watched(store)
        writer = GroupCommitQueue(gated, commit_rows=5, queue_rows=100)  # type: ignore[arg-type]
        many = [asyncio.create_task(writer.write(one(i), b"many")) for i in range(50)]
        await asyncio.sleep(0.01)
        few = asyncio.create_task(writer.write(one(99), b"few"))
        await asyncio.sleep(0.01)
        gated.gate.set()
        assert (await few).accepted == 1
        await asyncio.gather(*many)
        assert order.index(99) < 5 * (COMMITS_IN_FLIGHT + 1)
        assert [i for i in order if i != 99] == list(range(50)) and writer.waiting_rows == 0

    with_store(empty_redis, work)


def test_a_full_queue_refuses_and_a_lost_store_fails_the_whole_commit(empty_redis: str) -> None:
    async def work(store: Store) -> None:
        await store.register("v", REGISTRATION)
        gated = Gated(store)
        writer = GroupCommitQueue(gated, commit_rows=1, queue_rows=3)  # type: ignore[arg-type]
        gated.fault = Unavailable("down")
        calls = [asyncio.create_task(writer.write(one(i))) for i in range(COMMITS_IN_FLIGHT)]
        await asyncio.sleep(0.01)
        calls += [asyncio.create_task(writer.write(one(i))) for i in range(5)]
        await asyncio.sleep(0.01)
        assert writer.waiting_rows == 3
        gated.gate.set()
        done = await asyncio.gather(*calls, return_exceptions=True)
        assert all(isinstance(outcome, Unavailable) for outcome in done)
        assert "waiting" in str(done[-1]) and str(done[0]) == "down"
        gated.fault = None
        assert (await writer.write(one(1))).accepted == 1

    with_store(empty_redis, work)
