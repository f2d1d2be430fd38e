"""One suite for every bank: embedded, qdrant-client's local mode, and a real server if QDRANT_URL is set."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
import pytest
from qdrant_client import QdrantClient

from model.bank import NEVER_US, Bank, BankVideo, EmbeddedBank, EmptyBank
from model.bank.server import ServerBank
from model.bank.tombstone import tombstone
from model.errors import BankError, DataError
from tests.model.bank.bank_cases import (
    DC,
    DT,
    HOUR,
    LATE,
    T0,
    brute_force,
    curve,
    facts,
    ids,
    one,
    query,
    random_queries,
    random_videos,
    vec,
    video,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:Payload indexes have no effect:UserWarning"),
    pytest.mark.filterwarnings("ignore:Local mode performs exact:UserWarning"),
]


@dataclass
class Kit:
    """Fills and opens one kind of bank."""

    build: Callable[[], AbstractContextManager[Any]]
    open: Callable[[], Any]

    def filled(self, videos: Sequence[BankVideo]) -> Any:
        with self.build() as bank:
            bank.upsert(videos)
        return self.open()


@pytest.fixture(params=["embedded", "local", "server"])
def kit(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Kit]:
    opened: list[Bank] = []

    def recorded(bank: Bank) -> Bank:
        opened.append(bank)
        return bank

    if request.param == "embedded":
        path = tmp_path / "bank"
        yield Kit(lambda: EmbeddedBank.build(path, DC, DT), lambda: recorded(EmbeddedBank.open(path, DC, DT)))
    else:
        url = os.environ.get("QDRANT_URL", "")
        if request.param == "server" and not url:
            pytest.skip("QDRANT_URL is not set")
        client = QdrantClient(url=url) if url and request.param == "server" else QdrantClient(location=":memory:")
        prefix = f"test_{uuid4().hex}"
        args = (url, prefix, DC, DT, 30.0)
        yield Kit(lambda: ServerBank.build(*args, client=client), lambda: recorded(ServerBank(*args, client=client)))
        for collection in client.get_collections().collections:
            if collection.name.startswith(prefix):
                client.delete_collection(collection.name)
    for bank in opened:
        bank.close()


def test_videos_are_forgotten_by_their_tombstones(kit: Kit) -> None:
    made = [video(f"v{i}", creator_id="c") for i in range(4)]
    bank = kit.filled(made)
    bank.cache_searches(10)
    assert len(one(bank, limit=9)) == 4 and len(bank.creator(["c"])["c"]) == 4
    bank.forget([tombstone("v1"), tombstone("v3"), tombstone("never there")])
    assert ids(one(bank, limit=9)) == ["v0", "v2"]
    assert [past.video_id for past in bank.creator(["c"])["c"]] == ["v0", "v2"]
    assert bank.counts() == {"videos": 2, "trajectories": sum(len(v.trajectories) for v in (made[0], made[2]))}
    bank.upsert([made[1]])
    assert ids(one(bank, limit=9)) == ["v0", "v1", "v2"]


def test_search_equals_brute_force(kit: Kit) -> None:
    rng = np.random.default_rng(7)
    videos, queries = random_videos(rng, 300), random_queries(rng, 60)
    bank = kit.filled(videos)
    by_id = {v.video_id: v for v in videos}
    answers = bank.search(queries)
    assert any(answers)
    for q, found in zip(queries, answers, strict=True):
        assert ids(found) == brute_force(videos, q)
        for candidate in found:
            past = by_id[candidate.video_id]
            assert (candidate.published_us, candidate.category, candidate.creator_id) == (
                past.published_us,
                past.category,
                past.creator_id,
            )
            n = sum(past.published_us + age <= q.now_us for age in past.curve.ages_us.tolist())
            assert candidate.curve.ages_us.tolist() == past.curve.ages_us[:n].tolist()
            assert candidate.curve.values.tolist() == past.curve.values[:n].tolist()
            assert set(candidate.further) == set(past.further)
            for name, further in past.further.items():
                known, got_curve = further.until(q.now_us - past.published_us), candidate.curve_of(name)
                assert np.array_equal([got_curve.ages_us, got_curve.values], [known.ages_us, known.values])
            trajectory, usable_us = past.trajectories.get(q.age_bucket, (None, 0))
            for got, stored, known_us in (
                (candidate.content, past.content, past.usable_from_us),
                (candidate.trajectory, trajectory, usable_us),
            ):
                if stored is None or known_us > q.now_us:
                    assert got is None
                else:
                    assert got is not None and got.dtype == np.float32
                    np.testing.assert_allclose(got, stored / np.linalg.norm(stored), atol=1e-6)
    # Answers depend neither on the batch nor on earlier (cached) searches.
    assert [facts(found) for found in answers] == [facts(bank.search([q])[0]) for q in queries]


@pytest.mark.parametrize("late_us", [0, 1])
@pytest.mark.parametrize("afterwards", [False, True])
def test_a_video_is_found_from_the_microsecond_at_which_it_is_usable(kit: Kit, late_us: int, afterwards: bool) -> None:
    usable = 1_764_000_000_000_001

    def row(name: str, since: int, turn: float) -> list[BankVideo]:
        return [
            video(f"c{name}", content=vec(DC, 1, turn), trajectories={}, usable_from_us=since),
            video(f"t{name}", content=None, trajectories={2: (vec(DT, 1, turn), since)}),
        ]

    # More near videos than a search for one neighbour fetches: the late ones must not displace the right one.
    near = [late for i in range(6) for late in row(f"near{i}", usable + late_us, i / 100)]
    # One video that becomes usable even later, so that the bank needs a filter.
    rest = row("far", T0, 2) + row("later", usable + HOUR, 0)
    bank = kit.filled(row("far", T0, 2) if afterwards else near + rest)
    if afterwards:
        bank.upsert(near)
    assert ids(one(bank, now_us=usable, limit=1)) == (["cfar", "tfar"] if late_us else ["cnear0", "tnear0"])


def test_trajectories_are_searched_in_the_age_bucket_only(kit: Kit) -> None:
    bank = kit.filled(
        [video(f"in{b}", content=None, trajectories={b: (vec(DT, 1), T0)}) for b in (0, 2, 254)]
        + [video("both", content=None, trajectories={0: (vec(DT, 0, 1), T0), 2: (vec(DT, 2), T0)})]
    )
    assert ids(one(bank, age_bucket=2)) == ["both", "in2"]
    assert ids(one(bank, age_bucket=0)) == ["in0", "both"]
    assert ids(one(bank, age_bucket=254)) == ["in254"]
    assert ids(one(bank, age_bucket=3)) == []


def test_the_target_is_never_returned_and_displaces_no_neighbour(kit: Kit) -> None:
    bank = kit.filled([video(f"v{i}", content=vec(DC, 1, i), trajectories={2: (vec(DT, 1, i), T0)}) for i in range(6)])
    assert ids(one(bank, exclude="v0", limit=2)) == ["v1", "v2"]
    assert ids(one(bank, exclude="v1", limit=2)) == ["v0", "v2"]
    assert ids(one(bank, exclude="unknown", limit=2)) == ["v0", "v1"]


def test_neighbours_of_both_kinds_have_both_vectors(kit: Kit) -> None:
    alike = video("alike", content=vec(DC, 2), trajectories={2: (vec(DT, 0, 5), T0)})
    moving = video("moving", content=vec(DC, 0, 3), trajectories={2: (vec(DT, 9), T0)})
    found = one(kit.filled([alike, moving]), limit=1)
    assert ids(found) == ["alike", "moving"]
    for candidate, content, trajectory in zip(found, (0, 1), (1, 0), strict=True):
        assert candidate.content is not None and candidate.trajectory is not None
        assert candidate.content.tolist() == np.eye(DC)[content].tolist()
        assert candidate.trajectory.tolist() == np.eye(DT)[trajectory].tolist()
        assert not candidate.content.flags.writeable and not candidate.trajectory.flags.writeable


def test_a_vector_that_is_not_usable_yet_is_hidden(kit: Kit) -> None:
    young = video("young", trajectories={2: (vec(DT, 1), T0 + 9 * HOUR)})
    quick = video("quick", usable_from_us=T0 + 9 * HOUR, trajectories={2: (vec(DT, 1), T0 + HOUR)})
    bank = kit.filled([young, quick])
    assert [(c.content is None, c.trajectory is None) for c in one(bank, now_us=LATE)] == [(False, False)] * 2
    found = {c.video_id: c for c in one(bank, now_us=T0 + 5 * HOUR)}
    assert found["young"].content is not None and found["young"].trajectory is None
    assert found["quick"].content is None and found["quick"].trajectory is not None


def test_curves_end_at_now(kit: Kit) -> None:
    points = (0, 1), (HOUR, 2**40), (2 * HOUR, 2**41)
    bank = kit.filled([video("v", curve=curve(*points), further={"likes": curve(*points[1:])})])
    for now, n in ((T0 + HOUR, 2), (T0 + 2 * HOUR - 1, 2), (T0 + 2 * HOUR, 3), (LATE, 3)):
        [found] = one(bank, now_us=now)
        assert found.curve.ages_us.tolist() == [0, HOUR, 2 * HOUR][:n]
        assert found.curve.values.tolist() == [1, 2**40, 2**41][:n]
        assert found.curve_of("likes").values.tolist() == [2**40, 2**41][: n - 1]
        assert found.curve_of("shares").values.tolist() == []


def test_missing_vectors_search_nothing_and_are_not_found(kit: Kit) -> None:
    zero = video("zero", content=vec(DC), trajectories={2: (vec(DT), T0)})
    bank = kit.filled([video("full"), video("bare", content=None, trajectories={}), zero])
    assert ids(one(bank)) == ["full"]
    assert ids(one(bank, content=None)) == ids(one(bank, trajectory=None)) == ["full"]
    assert one(bank, content=None, trajectory=None) == one(bank, content=vec(DC), trajectory=vec(DT)) == []
    assert bank.search([]) == []
    assert bank.counts() == {"videos": 3, "trajectories": 1}


def test_a_video_that_is_never_usable_is_found_only_by_its_creator(kit: Kit) -> None:
    hidden = video("hidden", usable_from_us=NEVER_US, trajectories={2: (vec(DT, 1), NEVER_US)})
    half = video("half", usable_from_us=NEVER_US)
    bank = kit.filled([hidden, half])
    [found] = one(bank, now_us=NEVER_US - 1)
    assert (found.video_id, found.content) == ("half", None)
    assert [past.video_id for past in bank.creator(["ann"])["ann"]] == ["half", "hidden"]
    assert bank.counts() == {"videos": 2, "trajectories": 1}


def test_ties_are_ordered_by_id_even_at_the_last_position(kit: Kit) -> None:
    rng = np.random.default_rng(3)
    names = [f"v{i:03d}" for i in rng.permutation(200)]
    twins = [video(name, content=vec(DC, 1, 2, 3), trajectories={2: (vec(DT, 4, 5, 6), T0)}) for name in names]
    best = video("zz", content=vec(DC, 1), trajectories={})
    few = [video(f"w{i}", content=None, trajectories={5: (vec(DT, 1), T0)}) for i in (3, 1, 4, 0, 2)]
    worse = video("ww", content=None, trajectories={5: (vec(DT, 1, 1), T0)})
    second = video("zy", content=vec(DC, 1, 0.1), trajectories={})
    bank = kit.filled([*twins, best, second, *few, worse])
    assert ids(one(bank, limit=5)) == ["zz", "zy", "v000", "v001", "v002", "v003", "v004"]
    assert ids(one(bank, limit=5, exclude="v001", content=None)) == ["v000", "v002", "v003", "v004", "v005"]
    assert ids(one(bank, limit=2, exclude="zz", trajectory=None)) == ["zy", "v000"]
    assert ids(one(bank, content=None, age_bucket=5)) == ["w0", "w1", "w2", "w3", "w4", "ww"]


def test_upsert_replaces_everything(kit: Kit) -> None:
    bank = kit.filled([video("v", trajectories={1: (vec(DT, 1), T0), 2: (vec(DT, 1), T0)}), video("other")])
    assert ids(one(bank, age_bucket=1, content=None)) == ["v"]
    bank.upsert(
        [
            video("v", creator_id="first"),
            video(
                "v",
                category=None,
                creator_id="bob",
                content=None,
                trajectories={7: (vec(DT, 2), T0)},
                curve=curve((5, 6)),
            ),
        ]
    )
    assert one(bank, age_bucket=1, content=None) == []
    assert ids(one(bank, age_bucket=2)) == ["other"]
    [found] = one(bank, age_bucket=7, content=None)
    assert facts([found]) == [("v", T0, None, "bob", [5], [6], {}, None, np.eye(DT)[0].tolist())]
    assert [v.video_id for v in bank.creator(["ann"])["ann"]] == ["other"]
    assert bank.counts() == {"videos": 2, "trajectories": 2}


def test_removed_videos_stay_removed(kit: Kit) -> None:
    videos = [video(f"v{i}", creator_id="ann") for i in range(5)]
    bank = kit.filled(videos)
    bank.cache_searches(10)
    assert ids(one(bank)) == ["v0", "v1", "v2", "v3", "v4"]
    bank.remove(["v1", "v3", "never there"])
    assert ids(one(bank)) == ["v0", "v2", "v4"]
    bank.close()
    again = kit.open()
    assert ids(one(again)) == ["v0", "v2", "v4"]
    assert [past.video_id for past in again.creator(["ann"])["ann"]] == ["v0", "v2", "v4"]
    assert again.counts() == {"videos": 3, "trajectories": 3}


def test_facts_known_only_after_now_do_not_change_a_search_at_now(kit: Kit) -> None:
    rng = np.random.default_rng(11)
    videos = random_videos(rng, 200)
    now = T0 + 300 * HOUR
    queries = [replace(q, now_us=now) for q in random_queries(rng, 40)]
    bank = kit.filled(videos)
    before = [facts(found) for found in bank.search(queries)]
    cut = [
        replace(
            v,
            curve=v.curve.until(now - v.published_us),
            further={name: own.until(now - v.published_us) for name, own in v.further.items()},
            trajectories={b: t for b, t in v.trajectories.items() if t[1] <= now},
        )
        for v in videos
        if v.usable_from_us <= now
    ]
    assert sum(len(a.curve.values) for a in cut) < sum(len(a.curve.values) for a in videos)
    bank.upsert(cut)
    assert [facts(found) for found in bank.search(queries)] == before
    assert sum(map(len, before)) > 100


def test_a_creators_videos_are_in_order_and_have_complete_curves(kit: Kit) -> None:
    bank = kit.filled(
        [
            video("b", published_us=T0 + 5, curve=curve((HOUR, 1), (9000 * HOUR, 2)), further={"likes": curve((9, 3))}),
            video("c", content=None, trajectories={}),
            video("a"),
            video("x", creator_id="bob"),
            video("nobody", creator_id=None),
        ]
    )
    found = bank.creator(["ann", "bob", "carl"])
    assert {k: [v.video_id for v in past] for k, past in found.items()} == {
        "ann": ["a", "c", "b"],
        "bob": ["x"],
        "carl": [],
    }
    last = found["ann"][2]
    assert (last.published_us, last.curve.values.tolist()) == (T0 + 5, [1, 2])
    assert last.curve_of("likes").values.tolist() == [3]
    assert bank.creator([]) == {}


def test_optimize_does_not_change_answers(kit: Kit) -> None:
    rng = np.random.default_rng(5)
    bank = kit.filled(random_videos(rng, 200))
    queries = random_queries(rng, 30)
    before = [facts(found) for found in bank.search(queries)]
    steps: list[tuple[int, int]] = []
    bank.optimize(lambda done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1]
    assert [facts(found) for found in bank.search(queries)] == before


BAD_VIDEOS: dict[str, dict[str, Any]] = {
    "video_id": {"video_id": ""},
    "content": {"content": vec(DC + 1)},
    r"trajectories\[2\]": {"trajectories": {2: (vec(DT, np.nan), T0)}},
    "age_bucket": {"trajectories": {255: (vec(DT, 1), T0)}},
    "usable_from_us": {"usable_from_us": T0 - 1},
    "published_us": {"published_us": NEVER_US, "usable_from_us": NEVER_US},
    "strictly increasing": {"curve": curve((5, 1), (5, 2))},
    "n <= 40": {"curve": curve(*[(i, i) for i in range(41)])},
    "curve.values": {"curve": curve((5, -1))},
}


@pytest.mark.parametrize("field", BAD_VIDEOS)
def test_bad_videos_are_refused_by_name_and_not_stored(kit: Kit, field: str) -> None:
    bank = kit.filled([video("good")])
    with pytest.raises(DataError, match=field):
        bank.upsert([video("fine"), replace(video("bad"), **BAD_VIDEOS[field])])
    assert bank.counts()["videos"] == 1


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("content", {"content": vec(DC - 1, 1)}),
        ("trajectory", {"trajectory": vec(DT, np.inf)}),
        ("limit", {"limit": 0}),
        ("age_bucket", {"age_bucket": -1}),
        ("now_us", {"now_us": NEVER_US}),
    ],
)
def test_bad_queries_are_refused_by_name(kit: Kit, field: str, change: dict[str, Any]) -> None:
    with pytest.raises(DataError, match=field):
        one(kit.filled([video("good")]), **change)


def test_an_unfinished_fill_is_not_readable_and_keeps_the_old_bank(kit: Kit) -> None:
    def fail() -> None:
        with kit.build() as bank:
            bank.upsert([video("half")])
            raise KeyError("stopped")

    with pytest.raises(KeyError):
        fail()
    with pytest.raises(BankError):
        one(kit.open())
    bank = kit.filled([video("whole")])
    bank.close()
    with pytest.raises(KeyError):
        fail()
    assert ids(one(kit.open())) == ["whole"]


def test_a_fill_replaces_the_old_bank(kit: Kit) -> None:
    kit.filled([video("old"), video("older")]).close()
    assert ids(one(kit.filled([video("new")]))) == ["new"]


def test_the_empty_bank_finds_nothing() -> None:
    bank: Bank = EmptyBank()
    bank.upsert([video("v")])
    bank.optimize()
    assert bank.search([query(), query()]) == [[], []]
    assert bank.creator(["ann"]) == {"ann": []}
    assert bank.counts() == {"videos": 0, "trajectories": 0}
    bank.close()
