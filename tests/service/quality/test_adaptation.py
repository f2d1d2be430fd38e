"""A client cannot change another's intervals: neither by its requests nor by invented videos."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from model.engagement.bins import HOUR_US
from model.forecaster import Forecaster
from model.quantiles.adaptive import RAMP
from service.quality.sampler import Sampler
from service.store import keys
from service.store.keys import SAMPLING_LEASE
from service.store.snapshot import signed
from service.store.store import Registration
from service.times import iso
from tests.conftest import Mini
from tests.copies import copy_tree
from tests.service.quality.world import Clock, World, answer, events, given, keep, with_world
from tests.service.running import T0, Live, live, wait_until

pytestmark = pytest.mark.slow

S, H = 1_000_000, HOUR_US
P0 = T0 * S
NAMES = ("attacker", "victim")
HASHED = tuple(
    f"{scope}:{hashlib.sha256(name.encode()).hexdigest()}" for name in NAMES for scope in ("ingest", "predict")
)


def told(service: Live, path: str, **query: Any) -> Any:
    made = service.http.get(path, params=query, headers={"x-api-key": "victim"})
    assert made.status_code == 200, made.text
    return made.json()


def interval(service: Live, video_id: str) -> tuple[float, float]:
    (made,) = told(service, f"/videos/{video_id}/forecast", horizons_s="86400", at=iso(P0 + 600 * S))["forecasts"]
    return made["q0.1"], made["q0.9"]


def test_two_hundred_invented_videos_do_not_change_anothers_intervals(
    mini: Mini, empty_redis: str, tmp_path: Path
) -> None:
    """With 60 requests for the other's video, with horizons of 1 to 60 s."""
    forecaster = Forecaster.load(copy_tree(mini.bundle, tmp_path / "bundle"), device="cpu")
    clock, kind = Clock(P0 + 600 * S), forecaster.manifest.types[0]
    # The test's clock stands still, so that a cached forecast would never expire.
    options: dict[str, Any] = {
        "forecast_reuse_ms": 0,
        "labels": 200_000,
        "label_forecasts": 1000,
        "label_horizons_s": "900,86400",
    }
    try:
        with live(
            empty_redis,
            forecaster=forecaster,
            pool=forecaster.new_pool(32),
            bank=forecaster.bank,
            clock=clock,
            api_keys=HASHED,
            **options,
        ) as service:
            wait_until(lambda: service.redis.exists(SAMPLING_LEASE))

            def store(name: str, video_id: str, at_s: float, count: int) -> None:
                row = {"video_id": video_id, "time": T0 + at_s, "type": kind, "count": count}
                for method, path, body in (
                    ("PUT", f"/videos/{video_id}", {"published_at": T0, "title": video_id}),
                    ("POST", "/events", [row]),
                ):
                    made = service.http.request(method, path, json=body, headers={"x-api-key": name})
                    assert made.status_code == 200, made.text

            store("victim", "mine", 60, 50)
            for i in range(200):
                store("attacker", f"fake{i}", 60, 50)
            before = interval(service, "mine")
            shaped = interval(service, "fake0")
            # All forecasts are made; then the invented videos grow steeply, and the other does not.
            (sampler,) = (work for work in service.context.background if isinstance(work, Sampler))
            wait_until(lambda: len(sampler._schedule) == 201, 60)
            clock.now_us = P0 + 1800 * S - 1
            wait_until(lambda: told(service, "/quality")["pending"] == 402, 60)
            for horizon_s in range(1, 61):
                service.http.get(
                    "/videos/mine/forecast", params={"horizons_s": str(horizon_s)}, headers={"x-api-key": "attacker"}
                ).raise_for_status()
            for i in range(200):
                row = {"video_id": f"fake{i}", "time": T0 + 1798, "type": kind, "count": 10**7}
                service.http.post("/events", json=[row], headers={"x-api-key": "attacker"}).raise_for_status()
            clock.now_us = P0 + 3600 * S
            wait_until(lambda: sum(m["labels"] for m in told(service, "/quality")["models"]) >= 201, 60)
            # One of the ends may be at the limit of the training data.
            wait_until(lambda: not np.allclose(interval(service, "fake0"), shaped, rtol=0.02), 60)
            np.testing.assert_allclose(interval(service, "mine"), before, rtol=0.01)
            assert told(service, "/quality")["models"][0]["clients"] == 2
    finally:
        forecaster.close()


async def missed(world: World, n: int, client: str) -> None:
    """Make n videos of a client that end far above their interval."""
    for i in range(n):
        name = f"{client}{i}"
        await given(world, name, events(name, P0 + S, 100), events(name, P0 + H + 60 * S, 900), client=client)
    world.clock.now_us = P0 + H
    await keep(world, *(answer(f"{client}{i}", at_us=P0 + H, client=client) for i in range(n)))
    world.clock.now_us = P0 + 3 * H
    await world.scorer.sweep()


def test_each_client_has_its_own_state_and_a_new_one_the_common_state(empty_redis: str) -> None:
    async def work(world: World) -> None:
        cell = (1, 1, 4)
        for n in range(1, 5):
            await missed(world, RAMP, f"a{n}")
            await world.adaptation.refresh()
            own = world.adaptation.factors("m1", "view", f"a{n}")
            assert own is not None and own[cell] > 1.5
            assert world.adaptation.factors("m1", "view", "new") is None, "four are too few for a common state"
        await missed(world, RAMP, "a5")
        await world.adaptation.refresh()
        others = world.adaptation.factors("m1", "view", "new")
        assert others is not None and own is not None and 1.5 < others[cell] <= own[cell] * 1.001
        # A client with a thousand more outcomes does not change the common state.
        await missed(world, 4 * RAMP, "a6")
        await world.adaptation.refresh()
        own, now = world.adaptation.factors("m1", "view", "a6"), world.adaptation.factors("m1", "view", "new")
        assert own is not None and now is not None and own[cell] > 2 * others[cell]
        np.testing.assert_allclose(now[cell], others[cell], rtol=0.01)

    with_world(empty_redis, work, label_share=1.0)


def test_first_client_of_a_video_stays_its_client(empty_redis: str) -> None:
    async def work(world: World) -> None:
        async def put(client: str, metadata: str = "{}", video_id: str = "v") -> tuple[bool, str]:
            applied = await world.store.register(video_id, Registration(P0, signed(metadata, client)))
            snapshot = await world.store.read(video_id)
            assert snapshot is not None
            return applied.changed, snapshot.client

        assert await put("aa11") == (True, "aa11")
        assert await put("bb22") == (False, "aa11"), "nothing has changed"
        assert await put("bb22", '{"title":"t"}') == (True, "aa11")
        assert await put("", '{"title":"t"}') == (False, "aa11")
        forged = '{"title":"x\\",\\"registered_by\\":\\"cc33\\"}"}'
        assert await put("bb22", forged) == (True, "aa11")
        assert await put("", forged, "w") == (True, "")
        assert await put("bb22", forged, "w") == (False, ""), (
            "it does not get a video that was registered without a key"
        )
        snapshot = await world.store.read("w")
        assert snapshot is not None and snapshot.video.title == 'x","registered_by":"cc33"}'
        await world.store.forget("v")
        assert await put("bb22") == (True, "bb22")

    with_world(empty_redis, work)


def test_no_response_shows_the_client_of_a_video(empty_redis: str) -> None:
    with live(empty_redis, api_keys=HASHED) as service:
        name = hashlib.sha256(b"victim").hexdigest()[:8]
        body = {"published_at": T0, "registered_by": "aaaaaaaa"}
        made = service.http.put("/videos/v", json=body, headers={"x-api-key": "victim"})
        assert made.json()["unused_fields"] == ["registered_by"]
        video = {"video_id": "p", "published_at": T0}
        for asked in ({"video": video}, [{"video": {**video, "video_id": "q"}}]):
            service.http.post("/predict", json=asked, headers={"x-api-key": "victim"}).raise_for_status()
        for video_id in "vpq":
            stored = service.redis.get(keys.video_prefix(video_id) + "about")
            assert stored is not None and name.encode() in stored
            assert "registered_by" not in str(told(service, f"/videos/{video_id}"))
            assert name not in str(told(service, f"/videos/{video_id}"))
