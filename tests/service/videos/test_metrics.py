"""A request names the metrics that it wants. Without any, it gets the bundle's first metric, as ever."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from model.bank import EmptyBank
from model.bundle import Manifest, load_bundle
from model.forecaster import Forecaster
from service.models.versions import misfit
from tests.conftest import Mini
from tests.service.fakes import FakeForecaster
from tests.service.running import T0, Live, live

PATH = f"/videos/v/forecast?at={T0 + 900}&horizons_s=3600&thresholds=3"


@pytest.fixture(scope="module")
def several(redis_url: str) -> Iterator[Live]:
    with live(redis_url, forecaster=FakeForecaster(("view", "like", "total"))) as running:
        running.redis.flushall()
        running.register("v")
        rows = [{"video_id": "v", "time": T0 + i, "type": "like" if i % 3 else "view"} for i in range(9)]
        running.post("/events", rows)
        yield running


def asked(service: Live, query: str) -> dict[str, Any]:
    answer = service.http.get(PATH + query)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def test_the_default_is_the_first_metric_alone(several: Live) -> None:
    plain = asked(several, "")
    assert (plain["metric"], plain["value_now"]) == ("view", 3)
    assert "further" not in plain
    assert asked(several, "&metrics=view") == plain


@pytest.mark.parametrize(
    "query", ["&metrics=like,total", "&metrics=like&metrics=total", "&metrics[]=like&metrics[]=total"]
)
def test_each_metric_has_its_forecast_in_the_order_of_the_request(several: Live, query: str) -> None:
    made = asked(several, query)
    assert (made["metric"], made["value_now"]) == ("like", 6)
    (total,) = made["further"]
    assert (total["metric"], total["value_now"]) == ("total", 9)
    own = {"metric", "value_now", "forecasts", "thresholds", "intensity_per_hour", "neighbours", "extrapolated"}
    assert set(total) == own and own < set(made)
    assert (
        asked(several, "&metrics=total") == {name: value for name, value in made.items() if name != "further"} | total
    )


def test_predict_takes_metrics(several: Live) -> None:
    body = {"video": {"video_id": "v"}, "at": T0 + 900, "horizons_s": [3600], "thresholds": [3]}
    made = several.http.post("/predict", json={**body, "metrics": ["view", "like", "view"]}).json()
    assert [made["metric"], *(each["metric"] for each in made["further"])] == ["view", "like"]
    del made["rows"]
    assert made == asked(several, "&metrics=view,like")
    items = [{**body, "metrics": ["like"]}, body, {**body, "metrics": ["laugh"]}]
    told = several.http.post("/predict", json=items).json()
    assert [item.get("metric") for item in told] == ["like", "view", None]
    assert [item["status"] for item in told] == [200, 200, 422]


@pytest.mark.parametrize(
    ("metrics", "value"),
    [(["laugh"], "laugh"), (["view", "shares"], "shares"), ([], "no metric"), ([7], "7"), ([["view"]], "")],
)
def test_an_unknown_metric_is_named_with_what_is_allowed(several: Live, metrics: list[Any], value: str) -> None:
    answer = several.http.post("/predict", json={"video": {"video_id": "v"}, "metrics": metrics})
    assert answer.status_code == 422
    problem = answer.json()
    assert problem["field"] == "metrics" and value in problem["value"]
    assert "one or more of view, like, total" in problem["detail"]


@pytest.mark.parametrize("path", [PATH, "/videos/v/forecast/stream?horizons_s=3600"])
def test_an_unknown_metric_in_a_query_is_named(several: Live, path: str) -> None:
    joined = "&" if "?" in path else "?"
    answer = several.http.get(f"{path}{joined}metrics=view,laugh")
    assert answer.status_code == 422
    assert (answer.json()["field"], answer.json()["value"]) == ("metrics", "laugh")


def test_a_stream_sends_its_metrics(several: Live) -> None:
    path = "/videos/v/forecast/stream?horizons_s=3600"
    events: dict[str, str] = {}

    def read(query: str) -> None:
        with several.http.stream("GET", path + query) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    events[query] = line
                    return

    threads = [threading.Thread(target=read, args=(query,)) for query in ("", "&metrics=total,like")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert '"metric":"view"' in events[""] and '"further"' not in events[""]
    assert events["&metrics=total,like"].count('"metric":') == 2


@pytest.mark.slow
def test_a_model_without_a_served_metric_cannot_be_activated(mini_metrics: Mini) -> None:
    served: Manifest = load_bundle(Path(mini_metrics.bundle)).manifest
    fewer = replace(served, schema=replace(served.schema, further=()))
    more = replace(served, schema=replace(served.schema, further=("comments", "likes")))
    assert misfit(fewer, served) == "it does not forecast likes, which this service forecasts: start a service with it"
    assert misfit(more, served) is None and misfit(served, fewer) is None


@pytest.mark.slow
def test_a_real_bundle_serves_its_metrics(mini_metrics: Mini, empty_redis: str) -> None:
    forecaster = Forecaster.load(mini_metrics.bundle, bank=EmptyBank(), device="cpu")
    with live(empty_redis, forecaster=forecaster, pool=forecaster.new_pool(16), bank=EmptyBank()) as service:
        service.register("v", title="a title")
        rows = [{"video_id": "v", "time": T0 + h * 3600, "views": 40 * h, "likes": 3 * h} for h in range(1, 9)]
        service.post("/counters", rows)
        path = f"/videos/v/forecast?at={T0 + 9 * 3600}&horizons_s=3600,86400"
        both = service.http.get(f"{path}&metrics=views,likes").json()
        (likes,) = both["further"]
        assert [(made["metric"], made["value_now"]) for made in (both, likes)] == [("views", 320), ("likes", 24)]
        assert likes["intensity_per_hour"].keys() == {"like"}
        alone = service.http.get(f"{path}&metrics=likes").json()
        assert {name: alone[name] for name in likes} == likes
        plain = service.http.get(path).json()
        assert plain == {name: value for name, value in both.items() if name != "further"}
        answer = service.http.get(f"{path}&metrics=shares")
        assert (answer.status_code, answer.json()["field"]) == (422, "metrics")
