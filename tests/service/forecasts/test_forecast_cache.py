"""Cached forecasts: served only while nothing has changed; simultaneous requests are coalesced."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.service.fakes import FakeForecaster
from tests.service.running import Live, live


class Counting(FakeForecaster):
    """Counts its forecasts; ``delay_s`` delays each batch, ``failures`` is how many of the next batches fail."""

    def __init__(self) -> None:
        super().__init__()
        self.delay_s, self.failures = 0.0, 0

    def forecast(self, *args: Any, **options: Any) -> Any:
        time.sleep(self.delay_s)
        if self.failures:
            self.failures -= 1
            raise RuntimeError("once")
        return super().forecast(*args, **options)

    @property
    def made(self) -> int:
        return sum(self.batches)


@pytest.fixture
def model() -> Counting:
    return Counting()


@pytest.fixture
def service(empty_redis: str, model: Counting) -> Iterator[Live]:
    with live(empty_redis, forecaster=model) as running:
        running.register("v", time.time() - 90_000)
        yield running


def ask(service: Live, **query: Any) -> dict[str, Any]:
    answer = service.http.get("/videos/v/forecast", params={"horizons_s": 3600, **query})
    assert answer.status_code == 200, answer.text
    return answer.json()


def row(name: str) -> list[dict[str, Any]]:
    return [{"video_id": "v", "time": time.time() - 50, "type": "view", "id": name}]


def test_forecast_of_an_unchanged_video_is_cached(service: Live, model: Counting) -> None:
    first = ask(service)
    assert ask(service) == first and model.made == 1
    assert ask(service, horizons_s=7200) != first and model.made == 2
    assert "m3tr_forecasts_reused_total 1.0" in service.http.get("/metrics").text


def test_forecasts_with_other_thresholds_are_not_mixed(service: Live, model: Counting) -> None:
    plain, low, high = ask(service), ask(service, thresholds="5"), ask(service, thresholds="1e6,5")
    assert "thresholds" not in plain and model.made == 3
    assert [t["threshold"] for t in low["thresholds"]] == [5]
    assert [t["threshold"] for t in high["thresholds"]] == [5, 1_000_000]
    body = {"video": {"video_id": "v"}, "horizons_s": [3600], "thresholds": [1_000_000, 5, 5.0]}
    assert service.http.post("/predict", json=body).json()["thresholds"] == high["thresholds"]
    assert ask(service) == plain and ask(service, thresholds="5") == low and model.made == 3


def test_new_row_gives_a_new_forecast(service: Live, model: Counting) -> None:
    for i in range(20):
        service.post("/events", row(str(i)))
        assert ask(service)["counts"] == {"view": i + 1}
        predicted = service.http.post("/predict", json={"video": {"video_id": "v"}, "horizons_s": [3600]})
        assert predicted.json()["counts"] == {"view": i + 1}
    assert model.made == 20


def test_cached_forecast_expires(empty_redis: str, model: Counting) -> None:
    now = [1_760_000_000_000_000]
    with live(empty_redis, forecaster=model, clock=lambda: now[0]) as service:
        service.register("v", 1_760_000_000 - 86_400)
        service.register("young", 1_760_000_000 - 10)
        first = ask(service)
        now[0] += 4_999_000
        assert ask(service) == first
        now[0] += 2_000
        assert ask(service)["at"] != first["at"] and model.made == 2
        # Cached for a thousandth of its age of fifteen seconds.
        service.http.get("/videos/young/forecast")
        now[0] += 16_000
        service.http.get("/videos/young/forecast")
        assert model.made == 4


def test_cache_can_be_turned_off(empty_redis: str, model: Counting) -> None:
    with live(empty_redis, forecaster=model, forecast_reuse_ms=0) as service:
        service.register("v", time.time() - 90_000)
        ask(service)
        ask(service)
    assert model.made == 2


def test_simultaneous_requests_are_coalesced(service: Live, model: Counting) -> None:
    model.delay_s = 0.2
    answers: list[dict[str, Any]] = []
    threads = [threading.Thread(target=lambda: answers.append(ask(service))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert model.made == 1 and len(answers) == 10 and all(answer == answers[0] for answer in answers)


def test_failure_is_not_cached(service: Live, model: Counting) -> None:
    model.failures = 1
    assert service.http.get("/videos/v/forecast?horizons_s=3600").status_code == 500
    assert ask(service)["metric"] == "total"
