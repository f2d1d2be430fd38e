"""Readiness shows the state of each part; a probe does not call the parts."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from service.readiness import EVERY_S
from tests.service.fakes import FakeBank, FakeForecaster
from tests.service.running import Live, live, wait_until

pytestmark = pytest.mark.slow


class Moody(FakeForecaster):
    """Waits while ``let`` is not set, and fails while ``fails``."""

    def __init__(self) -> None:
        super().__init__()
        self.let, self.fails = threading.Event(), False
        self.let.set()

    def forecast(self, *args: Any, **kwargs: Any) -> Any:
        assert self.let.wait(30)
        if self.fails:
            raise ValueError("no such tensor")
        return super().forecast(*args, **kwargs)


class CountedBank(FakeBank):
    asked = 0

    def counts(self) -> dict[str, int]:
        self.asked += 1
        return super().counts()


def ready(service: Live) -> tuple[int, dict[str, Any]]:
    answer = service.http.get("/health/ready")
    return answer.status_code, answer.json()


def test_each_part_is_shown(redis_url: str) -> None:
    with live(redis_url) as service:
        status, body = ready(service)
        assert status == 200
        assert body | {"clock_offset_s": 0, "store_warnings": []} == {
            "status": "ready",
            "store": "ok",
            "store_warnings": [],
            "clock_offset_s": 0,
            "model": "ok",
            "bank": "ok",
            "model_version": "fa4e",
        }
        head = service.http.head("/health/ready")
        assert head.status_code == 200 and head.content == b""


def test_hanging_model_makes_unready(empty_redis: str) -> None:
    model = Moody()
    with live(empty_redis, forecaster=model, request_deadline_ms=500, bank_deadline_ms=100) as service:
        service.register("v")
        assert service.http.get("/videos/v/forecast").status_code == 200 and ready(service)[0] == 200
        model.let.clear()
        # Noticed without any forecast request.
        wait_until(lambda: ready(service)[0] == 503)
        _, body = ready(service)
        assert body["model"] == "down" and body["detail"] == "the model cannot forecast: it does not answer"
        assert service.http.head("/health/ready").status_code == 503
        assert service.http.get("/health/live").status_code == 200
        assert "m3tr_model_works 0.0" in service.http.get("/metrics").text
        model.let.set()
        wait_until(lambda: ready(service)[0] == 200)
        assert "m3tr_model_works 1.0" in service.http.get("/metrics").text


def test_failing_model_makes_unready_and_a_failing_video_does_not(empty_redis: str) -> None:
    model = Moody()
    with live(empty_redis, forecaster=model) as service:
        service.register("bad", title="poison")
        for _ in range(3):
            assert service.http.get("/videos/bad/forecast").status_code == 500
        threading.Event().wait(2.5 * EVERY_S)
        assert ready(service)[0] == 200, "one failing video is not a failing model"
        model.fails = True
        wait_until(lambda: ready(service)[0] == 503)
        assert ready(service)[1]["detail"] == "the model cannot forecast: no such tensor"
        model.fails = False
        wait_until(lambda: ready(service)[0] == 200)


def test_bank_that_is_down_is_shown_and_probes_do_not_query_it(empty_redis: str) -> None:
    bank = CountedBank()
    with live(empty_redis, bank=bank) as service:
        wait_until(lambda: bank.asked > 0)
        before = bank.asked
        for _ in range(300):
            service.http.get("/health/ready")
            service.http.get("/metrics")
        assert bank.asked - before < 60, "once a second, however many probes"
        bank.down = True
        wait_until(lambda: ready(service)[1]["bank"] == "down")
        assert ready(service)[0] == 200
        bank.down = False
        wait_until(lambda: ready(service)[1]["bank"] == "ok")
