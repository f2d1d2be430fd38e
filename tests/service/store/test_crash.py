"""kill -9 of the service and of its store, right after a 2xx: no acknowledged row is lost, and none counts twice."""

from __future__ import annotations

import random
import time
from functools import partial
from pathlib import Path

import httpx
import pytest

from tests.service.conftest import Starter
from tests.service.producer import Producer
from tests.service.running import T0

pytestmark = pytest.mark.slow

KILLS = 20


def test_kill_9_loses_and_doubles_nothing(tmp_path: Path, fake_process: Starter) -> None:
    chance = random.Random(7)
    producers = [Producer(f"v{i}") for i in range(3)]
    process = fake_process(tmp_path / "data", M3TR_APPENDFSYNC="always")
    with httpx.Client(base_url=process.url) as http:
        for producer in producers:
            assert http.put(f"/videos/{producer.name}", json={"published_at": T0}).status_code == 200
    for kill in range(KILLS):
        for producer in producers:
            producer.start(partial(str, process.url))
        assert all(producer.news.wait(20) for producer in producers)
        # Half of the kills come right after an acknowledgement, the other half at any time.
        if kill % 2:
            time.sleep(chance.uniform(0, 0.05))
        process.kill(server=True)
        for producer in producers:
            producer.stop()
        process = fake_process(tmp_path / "data", M3TR_APPENDFSYNC="always")
        with httpx.Client(base_url=process.url) as http:
            for producer in producers:
                # The batch under way may have been stored or not; its producer does not know.
                assert producer.stored(http) - producer.acknowledged in (0, 1)
    with httpx.Client(base_url=process.url, timeout=30) as http:
        for producer in producers:
            assert producer.acknowledged > KILLS
            producer.repeat(http, max(0, producer.acknowledged - 50))
            assert producer.stored(http) == producer.acknowledged + 1
    assert process.stop() == 0
