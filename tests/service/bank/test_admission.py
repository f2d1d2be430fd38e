"""Videos of the service become neighbours of new ones, with the entries that the builder would make."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.bundles.index import index
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.export import export_store
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from model.bank import BankQuery, BankVideo, EmbeddedBank
from model.engagement.bins import HOUR_US
from model.errors import BankError
from model.forecaster import Forecaster
from model.growth.curve_kernels import age_bucket
from model.indexing import ObservedVideos, entries
from service.bank.entries import bank_entries
from service.store import keys
from service.times import iso
from tests.conftest import Mini
from tests.copies import copy_tree
from tests.service.fakes import FakeBank
from tests.service.running import Live, live, wait_until
from tests.service.test_real_bundle import rows_until

pytestmark = pytest.mark.slow

DAY_US = 24 * HOUR_US


class Clock:
    def __init__(self, now_us: int) -> None:
        self.now_us = now_us

    def __call__(self) -> int:
        return self.now_us


@pytest.fixture(scope="module")
def data(mini: Mini) -> DataSet:
    return load_dataset(mini.data)


@pytest.fixture
def bundle(mini: Mini, tmp_path: Path) -> Path:
    """A copy, because a bank can be opened once only and is written to."""
    return copy_tree(mini.bundle, tmp_path / "bundle")


@contextmanager
def real(url: str, bundle: Path, clock: Clock, bank: Any = None, **settings: Any) -> Iterator[tuple[Live, Forecaster]]:
    """A service with a real model; at its end it closes the bank."""
    forecaster = Forecaster.load(bundle, device="cpu")
    try:
        with live(
            url,
            forecaster=forecaster,
            pool=forecaster.new_pool(32),
            bank=bank or forecaster.bank,
            clock=clock,
            **{"ranking_forecasts": 0, "bank_entries": 1000, **settings},
        ) as service:
            yield service, forecaster
    finally:
        forecaster.close()


def lived(service: Live, data: DataSet, chosen: Sequence[int], until_us: int) -> list[str]:
    """Register videos and send their rows; return their new names, which the bank does not contain yet."""
    names = []
    for v in chosen:
        video = data.videos[v]
        name = f"lived-{video.video_id}"
        service.register(name, iso(video.published_us), **video.metadata())
        found, _ = rows_until(data, v, until_us)
        if found:
            service.post("/events", [{**row, "video_id": name} for row in found])
        names.append(name)
    return names


def pulse(service: Live, now_us: int) -> None:
    """Send one row of another video, so that the traffic has reached the present time."""
    service.register("pulse", iso(now_us - HOUR_US // 4))
    service.post("/events", [{"video_id": "pulse", "time": iso(now_us), "type": "view"}])


def entered(service: Live, outcome: str = "entered") -> float:
    return service.context.metrics.bank_entries.labels(outcome)._value.get()


def _entered_are(service: Live, count: int) -> bool:
    return entered(service) == count


def test_admitted_video_is_a_neighbour_and_equals_the_builders_entry(
    mini: Mini, data: DataSet, bundle: Path, empty_redis: str, tmp_path: Path
) -> None:
    chosen = [v for v in range(len(data.videos)) if data.published_us[v] > mini.as_of_us - 3 * DAY_US][:8]
    now_us = max(int(data.published_us[v]) for v in chosen) + 5 * DAY_US
    clock = Clock(now_us)
    with real(empty_redis, bundle, clock, bank_after_s=86_400) as (service, forecaster):
        before = forecaster.bank.counts()["videos"]
        names = lived(service, data, chosen, now_us)
        pulse(service, now_us)
        wait_until(lambda: entered(service) >= len(names))
        assert forecaster.bank.counts()["videos"] == before + len(names)
        service.register("new", iso(now_us - HOUR_US // 2), **data.videos[chosen[0]].metadata())
        told = service.http.get("/videos/new/forecast").json()["neighbours"]
        (found,) = [n for n in told if n["video_id"] == names[0]]
        assert found["content_similarity"] > 0.9
        snapshots = asyncio.run(_snapshots(service, names))
        made = {
            entry.video_id: entry
            for entry in bank_entries(forecaster, snapshots, forecaster.content([s.video for s in snapshots]), now_us)
        }
        export_store(tmp_path / "exported", redis_url=empty_redis)
        exported = load_dataset(tmp_path / "exported", before_us=now_us)
        assert exported.last_us() == now_us, "otherwise the data set's curves end earlier than the service's"
        seen = Observed.of(exported, forecaster.manifest.metric)
        past = ObservedVideos(exported.videos, exported.published_us, exported.types, seen.events, seen.counters)
        built = {
            entry.video_id: entry
            for batch in entries(
                forecaster,
                past,
                exported.watched_until_us(now_us),
                content=lambda batch: forecaster.content([exported.videos[v] for v in batch]),
            )
            for entry in batch
        }
        trajectories = 0
        for name in names:
            assert_equal(made[name], built[name])
            trajectories += len(made[name].trajectories)
        assert trajectories > 3 * len(names)
        index(bundle, tmp_path / "exported", as_of_us=now_us, bank=tmp_path / "bank")
        assert_banks_agree(forecaster, tmp_path / "bank", [made[name] for name in names], now_us)


async def _snapshots(service: Live, names: list[str]) -> Any:
    # With a store of its own, because the service's belongs to another loop.
    from service.store.functions import connect
    from service.store.store import Store
    from service.wiring import new_metrics

    url = service.redis.connection_pool.connection_kwargs["path"]
    link = connect(f"unix://{url}", new_metrics(service.context.settings), deadline_s=5, connections=1)
    try:
        found = await Store(link, service.context.settings, service.context.metrics).read_many(dict.fromkeys(names))
    finally:
        await link.close()
    return list(found.values())


def assert_equal(a: BankVideo, b: BankVideo) -> None:
    for name in ("video_id", "published_us", "category", "creator_id", "usable_from_us"):
        assert getattr(a, name) == getattr(b, name), name
    np.testing.assert_array_equal(a.curve.ages_us, b.curve.ages_us)
    np.testing.assert_array_equal(a.curve.values, b.curve.values)
    assert a.content is not None and b.content is not None
    np.testing.assert_allclose(a.content, b.content, atol=1e-6)
    assert a.trajectories.keys() == b.trajectories.keys()
    for bucket, (vector, usable_us) in a.trajectories.items():
        np.testing.assert_array_equal(vector, b.trajectories[bucket][0])
        assert usable_us == b.trajectories[bucket][1]


def assert_banks_agree(forecaster: Forecaster, built: Path, made: list[BankVideo], now_us: int) -> None:
    """The neighbours that the service's bank and the builder's return for the same videos."""
    dims = (
        len(made[0].content if made[0].content is not None else ()),
        len(next(iter(made[0].trajectories.values()))[0]),
    )
    with EmbeddedBank.open(built, *dims) as other:
        for entry in made:
            bucket = int(age_bucket(int(entry.curve.ages_us[-3])))
            query = BankQuery(entry.content, entry.trajectories[bucket][0], bucket, now_us, "", 200)
            ours, theirs = (
                {c.video_id: c for c in bank.search([query])[0]}[entry.video_id] for bank in (forecaster.bank, other)
            )
            assert ours.content is not None and theirs.content is not None
            assert ours.trajectory is not None and theirs.trajectory is not None
            np.testing.assert_allclose(ours.content, theirs.content, atol=1e-6)
            np.testing.assert_allclose(ours.trajectory, theirs.trajectory, atol=1e-6)
            np.testing.assert_array_equal(ours.curve.values, theirs.curve.values)


def test_video_is_admitted_at_an_age_and_again_at_its_doubles(
    mini: Mini, data: DataSet, bundle: Path, empty_redis: str
) -> None:
    v = next(v for v in range(len(data.videos)) if data.published_us[v] > mini.as_of_us)
    published_us = int(data.published_us[v])
    clock = Clock(published_us + 20 * HOUR_US)
    with real(empty_redis, bundle, clock, bank_after_s=86_400) as (service, forecaster):
        (name,) = lived(service, data, [v], clock.now_us)
        pulse(service, clock.now_us)
        schedule = keys.maturing(_scope(service))
        due_s = lambda: service.redis.zscore(schedule, name)  # noqa: E731
        wait_until(lambda: due_s() == published_us // 1_000_000 + 86_400)
        assert entered(service) == 0
        points = []
        for turn, age_h in enumerate((25, 60), 1):
            clock.now_us = published_us + age_h * HOUR_US
            service.http.delete("/videos/pulse")
            pulse(service, clock.now_us)
            wait_until(partial(_entered_are, service, turn))
            next_s = published_us // 1_000_000 + 2 * age_h * 3600
            wait_until(lambda: due_s() == next_s)  # noqa: B023 - ends within this turn of the loop
            creator = data.videos[v].creator_id
            assert creator is not None
            (past,) = [p for p in forecaster.bank.creator([creator])[creator] if p.video_id == name]
            points.append(len(past.curve.ages_us))
        assert points[1] > points[0]
        clock.now_us = published_us + 200 * DAY_US
        service.http.delete("/videos/pulse")
        pulse(service, clock.now_us)
        wait_until(lambda: due_s() is None)
        assert entered(service) == 3


def test_videos_from_before_the_start_are_admitted_and_deleted_ones_are_not(
    mini: Mini, data: DataSet, bundle: Path, empty_redis: str
) -> None:
    chosen = [v for v in range(len(data.videos)) if data.published_us[v] > mini.as_of_us][:4]
    now_us = max(int(data.published_us[v]) for v in chosen) + 2 * DAY_US
    with real(empty_redis, bundle, Clock(now_us)) as (service, _):
        names = lived(service, data, chosen, now_us)
        assert service.redis.exists(keys.maturing(_scope(service))) == 0
    with real(empty_redis, bundle, Clock(now_us - 30 * DAY_US), bank_after_s=86_400) as (service, _):
        pulse(service, now_us - 30 * DAY_US)
        wait_until(lambda: service.redis.zcard(keys.maturing(_scope(service))) == 5)
        assert service.http.delete(f"/videos/{names[0]}").status_code == 204
    with real(empty_redis, bundle, Clock(now_us), bank_after_s=86_400) as (service, _):
        assert service.http.delete("/videos/pulse").status_code == 204
        pulse(service, now_us)
        wait_until(lambda: entered(service) == 3)
        wait_until(lambda: service.redis.zscore(keys.maturing(_scope(service)), names[0]) is None)


def test_full_bank_and_failing_bank(mini: Mini, data: DataSet, bundle: Path, empty_redis: str) -> None:
    v = next(v for v in range(len(data.videos)) if data.published_us[v] > mini.as_of_us)
    now_us = int(data.published_us[v]) + 2 * DAY_US
    with real(empty_redis, bundle, Clock(now_us), bank_after_s=3600, bank_videos=1) as (service, forecaster):
        before = forecaster.bank.counts()
        lived(service, data, [v], now_us)
        pulse(service, now_us)
        wait_until(lambda: entered(service, "full") == 1)
        assert forecaster.bank.counts() == before

    class Failing(FakeBank):
        def upsert(self, videos: Sequence[BankVideo]) -> None:
            raise BankError("no space")

    with real(empty_redis, bundle, Clock(now_us), bank=Failing(), bank_after_s=3600) as (service, _):
        service.redis.delete(keys.maturing(_scope(service)))
        service.register("again", iso(now_us - DAY_US))
        service.post("/events", [{"video_id": "again", "time": iso(now_us - DAY_US), "type": "view"}])
        pulse(service, now_us)
        wait_until(lambda: entered(service, "failed") == 1)
        due_s = service.redis.zscore(keys.maturing(_scope(service)), "again")
        assert due_s == now_us // 1_000_000 + 60
        assert service.http.get("/videos/again/forecast").status_code == 200


def _scope(service: Live) -> str:
    from service.bank.admission import bank_name

    return f"{bank_name(service.context.settings, service.context.settings.bundle)}-{service.context.engine.active.version[:16]}"


def test_during_a_replay_now_is_the_time_that_the_replay_has_reached(
    mini: Mini, data: DataSet, bundle: Path, empty_redis: str
) -> None:
    """By this machine's clock the videos are a year old; rows that are not sent yet must not count as silence."""
    v = next(v for v in range(len(data.videos)) if data.published_us[v] > mini.as_of_us)
    published_us = int(data.published_us[v])
    with real(empty_redis, bundle, Clock(published_us + 365 * DAY_US), bank_after_s=86_400) as (service, forecaster):
        (name,) = lived(service, data, [v], published_us + 2 * HOUR_US)
        pulse(service, published_us + 2 * HOUR_US)
        schedule = keys.maturing(_scope(service))
        wait_until(lambda: service.redis.zscore(schedule, name) == published_us // 1_000_000 + 86_400)
        assert entered(service) == 0
        service.http.delete("/videos/pulse")
        pulse(service, published_us + 30 * HOUR_US)
        wait_until(lambda: entered(service) == 1)
        creator = data.videos[v].creator_id
        assert creator is not None
        (past,) = [p for p in forecaster.bank.creator([creator])[creator] if p.video_id == name]
        assert 20 * HOUR_US < past.curve.ages_us[-1] <= 31 * HOUR_US
