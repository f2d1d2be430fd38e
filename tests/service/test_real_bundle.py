"""``m3tr-serve`` with a real bundle: its forecasts equal the builder's offline ones for the same rows and time."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray

from index_builder.bundles.forecast import forecast_at
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from model.engagement.bins import HOUR_US
from model.engagement.types import counter_column
from model.forecaster import Forecaster
from model.quantiles.head import QUANTILES
from service.times import iso
from tests import patience
from tests.conftest import Mini
from tests.copies import copy_tree
from tests.service.running import Process
from tests.service.test_metrics import promtool_complaints

pytestmark = pytest.mark.slow

HORIZONS_S = (3600, 24 * 3600, 100 * 3600)
COMMAND = [sys.executable, "-m", "service.cli"]


@dataclass(frozen=True)
class Case:
    """A video at a time, its rows until then, and the offline forecast (H, 3)."""

    video: dict[str, Any]
    now_us: int
    events: list[dict[str, Any]]
    counters: list[dict[str, Any]]
    quantiles: NDArray[np.float64]

    @property
    def id(self) -> str:
        return str(self.video["video_id"])


def rows_until(data: DataSet, index: int, now_us: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    video_id = data.videos[index].video_id
    found: tuple[list[dict[str, Any]], list[dict[str, Any]]] = ([], [])
    for rows, out in ((data.events, found[0]), (data.counters, found[1])):
        if rows is None:
            continue
        for i in range(rows.offsets[index], rows.offsets[index + 1]):
            if rows.time_us[i] > now_us:
                continue
            row: dict[str, Any] = {"video_id": video_id, "time": iso(int(rows.time_us[i])), "id": f"{len(out)}"}
            kind, value = data.types[rows.type[i]], int(rows.value[i])
            if out is found[0]:
                out.append({**row, "type": kind, "count": value, "reach": int(rows.reach[i])})
            else:
                out.append({**row, "id": f"c{len(out)}", counter_column(kind): value})
    return found


@contextmanager
def closing_process(process: Process) -> Iterator[None]:
    try:
        yield
        assert process.stop() == 0
    finally:
        process.clean_up()


@pytest.fixture(scope="module")
def cases(mini: Mini) -> list[Case]:
    data = load_dataset(mini.data)
    chosen = [i for i in range(len(data.videos)) if data.published_us[i] < mini.as_of_us + 10 * 24 * HOUR_US][-12:]
    ages_us = [0, HOUR_US // 60, HOUR_US, 30 * HOUR_US]
    now = np.array([int(data.published_us[v]) + ages_us[i % len(ages_us)] + i for i, v in enumerate(chosen)])
    forecaster = Forecaster.load(mini.bundle)
    try:
        quantiles = forecast_at(
            forecaster,
            Observed.of(data, forecaster.manifest.metric),
            np.repeat(np.array(chosen), len(HORIZONS_S)),
            np.repeat(now, len(HORIZONS_S)),
            np.tile(np.array(HORIZONS_S) * 1_000_000, len(chosen)),
        ).reshape(len(chosen), len(HORIZONS_S), 8)
    finally:
        forecaster.close()
    cases = []
    for i, v in enumerate(chosen):
        known = {name: getattr(data.videos[v], name) for name in data.videos[v].__dataclass_fields__}
        published_us = known.pop("published_us")
        video = {
            "published_at": iso(published_us),
            **{n: value for n, value in known.items() if value not in (None, ())},
        }
        cases.append(Case(video, int(now[i]), *rows_until(data, v, int(now[i])), quantiles[i]))
    assert sum(len(case.events) + len(case.counters) for case in cases) > 100
    return cases


@pytest.fixture(scope="module")
def http(mini: Mini, cases: list[Case], tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    data_dir = tmp_path_factory.mktemp("real") / "data"
    process = Process([*COMMAND, "--bundle", str(mini.bundle), "--device", "cpu"], data_dir)
    with closing_process(process), httpx.Client(base_url=process.url, timeout=60) as client:
        yield client


def check(case: Case, answer: httpx.Response) -> None:
    assert answer.status_code == 200, answer.text
    made = answer.json()
    found = np.array([[f["mean"], *(f[f"q{level}"] for level in QUANTILES)] for f in made["forecasts"]])
    np.testing.assert_allclose(found, case.quantiles, rtol=1e-5, atol=1e-9)
    assert made["stale"] is False and made["degraded"] == [] and not made["as_of_bins"]
    assert made["cold_start"] == (not any(row.get("count", 1) for row in case.events + case.counters))


def ask(http: httpx.Client, case: Case) -> httpx.Response:
    query = {"at": iso(case.now_us), "horizons_s": ",".join(map(str, HORIZONS_S))}
    return http.get(f"/videos/{case.id}/forecast", params=query)


def send(http: httpx.Client, case: Case, events: list[dict[str, Any]], counters: list[dict[str, Any]]) -> None:
    for path, rows in (("/events", events), ("/counters", counters)):
        if rows:
            answer = http.post(path, json=rows)
            assert answer.status_code == 200 and not answer.json()["rejected"], answer.text


@pytest.fixture(autouse=True)
def forgotten(request: pytest.FixtureRequest) -> None:
    if "cases" in request.fixturenames and "http" in request.fixturenames:
        client: httpx.Client = request.getfixturevalue("http")
        for case in request.getfixturevalue("cases"):
            client.delete(f"/videos/{case.id}")


def test_rows_in_order(http: httpx.Client, cases: list[Case]) -> None:
    for case in cases:
        assert http.put(f"/videos/{case.id}", json=case.video).status_code == 200
        send(http, case, case.events, case.counters)
        check(case, ask(http, case))


def test_rows_in_predict(http: httpx.Client, cases: list[Case]) -> None:
    for case in cases:
        body = {"video": case.video, "events": case.events, "counters": case.counters}
        check(case, http.post("/predict", json={**body, "at": iso(case.now_us), "horizons_s": HORIZONS_S}))


def test_rows_before_the_registration(http: httpx.Client, cases: list[Case]) -> None:
    for case in cases:
        send(http, case, case.events[:1500], case.counters)
        assert http.put(f"/videos/{case.id}", json=case.video).json()["parked_rejected"] == 0
        send(http, case, case.events, case.counters)
        check(case, ask(http, case))


def test_rows_shuffled_split_and_repeated_between_forecasts(http: httpx.Client, cases: list[Case]) -> None:
    """Late rows roll the cached state back, and the forecast equals that of the rows in order."""
    chance = random.Random(3)
    for case in cases:
        assert http.put(f"/videos/{case.id}", json=case.video).status_code == 200
        events, counters = (
            chance.sample(case.events, len(case.events)),
            chance.sample(case.counters, len(case.counters)),
        )
        for part in range(4):
            send(http, case, events[part::4], counters[part::4])
            assert ask(http, case).status_code == 200
        send(http, case, events[: len(events) // 2], [])
        check(case, ask(http, case))


def test_every_stage_is_in_the_metrics(http: httpx.Client, cases: list[Case]) -> None:
    assert http.put(f"/videos/{cases[0].id}", json=cases[0].video).status_code == 200
    before = http.get("/metrics").text
    for horizon_s in HORIZONS_S[:2]:
        query = {"at": iso(cases[0].now_us), "horizons_s": horizon_s}
        assert http.get(f"/videos/{cases[0].id}/forecast", params=query).status_code == 200  # type: ignore[arg-type]
    text = http.get("/metrics").text
    for stage in ("content", "state", "bank", "head"):
        assert f'm3tr_model_stage_duration_seconds_count{{stage="{stage}"}}' in text
    assert sample(text, "state_cache_hits_total") > sample(before, "state_cache_hits_total")
    assert sample(text, "state_cache_used_slots") >= 1
    assert sample(text, "bank_points") > 0
    assert promtool_complaints(text) == ""


def sample(text: str, name: str) -> float:
    return float(text.split(f"\nm3tr_{name} ")[1].split()[0])


def test_a_bank_that_is_down_does_not_stop_forecasts(mini: Mini, cases: list[Case], tmp_path: Path) -> None:
    command = [*COMMAND, "--bundle", str(mini.bundle), "--qdrant-url", "http://127.0.0.1:1", "--device", "cpu"]
    process = Process(command, tmp_path / "data")
    with closing_process(process), httpx.Client(base_url=process.url, timeout=60) as http:
        made = http.post("/predict", json={"video": cases[0].video, "at": iso(cases[0].now_us)}).json()
        assert made["degraded"] == ["bank"] and made["neighbours"] == [] and made["forecasts"]
        assert http.get("/health/ready").json()["bank"] == "down"
        assert sample(http.get("/metrics").text, "bank_failures_total") >= 1


def test_flipped_byte_in_the_bundle_stops_the_start(mini: Mini, tmp_path: Path) -> None:
    copy = tmp_path / "bundle"
    copy_tree(mini.bundle, copy)
    target = copy / "head.onnx"
    content = bytearray(target.read_bytes())
    content[len(content) // 2] ^= 1
    target.write_bytes(content)
    command = [*COMMAND, "--bundle", str(copy), "--data-dir", str(tmp_path / "data"), "--port", "0"]
    done = patience.run(command, capture_output=True, text=True, seconds=60)
    assert done.returncode == 1
    assert "head.onnx" in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "data").exists()


def test_unusable_settings_stop_the_start(mini: Mini, tmp_path: Path) -> None:
    command = [*COMMAND, "--bundle", str(mini.bundle), "--data-dir", str(tmp_path), "--host", "0.0.0.0"]
    done = patience.run(command, capture_output=True, text=True, seconds=60)
    assert done.returncode == 2
    assert "api_keys" in done.stderr and "Traceback" not in done.stderr
