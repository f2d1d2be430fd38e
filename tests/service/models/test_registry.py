"""The model registry over HTTP, with real bundles: listed, activated, followed, and shadowed."""

from __future__ import annotations

import hashlib
import shutil
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import redis
import uvicorn
from safetensors.numpy import load_file, save_file

from model.bundle import load_bundle, write_manifest
from service.app import create_app
from service.deployment.loading import load_model
from service.settings import Settings
from service.wiring import build, new_metrics
from tests.copies import copy_tree
from tests.service.running import QUIET, T0, Process, live, wait_until
from tests.service.test_metrics import promtool_complaints
from tests.service.test_real_bundle import COMMAND, closing_process

pytestmark = pytest.mark.slow

VIDEOS = [f"v{i}" for i in range(12)]
AT = T0 + 30 * 3600


def other(bundle: Path, out: Path, seed: int = 2) -> Path:
    """A copy with other weights and a new hash: another version, with other forecasts."""
    copy_tree(bundle, out)
    rng, weights = np.random.default_rng(seed), load_file(out / "weights.safetensors")
    changed = {
        name: (w * rng.normal(1, 0.05, w.shape)).astype(w.dtype) if name.startswith("mhp.blocks") else w
        for name, w in weights.items()
    }
    save_file(changed, out / "weights.safetensors")
    write_manifest(out, load_bundle(bundle).manifest)
    return out


def narrower(bundle: Path, out: Path) -> Path:
    """A copy with a shorter longest horizon."""
    copy_tree(bundle, out)
    manifest = load_bundle(bundle).manifest
    schema = replace(manifest.schema, max_horizon_us=manifest.schema.max_horizon_us // 2)
    write_manifest(out, replace(manifest, schema=schema))
    return out


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@dataclass
class Shelf:
    """A folder of bundles: ``a`` is served, ``b`` fits, ``broken`` has a flipped byte, ``narrow`` does not fit."""

    folder: Path

    def hash(self, name: str) -> str:
        return load_bundle(self.folder / name).manifest.version


def shelf(mini: Path, folder: Path) -> Shelf:
    folder.mkdir()
    copy_tree(mini, folder / "a")
    other(mini, folder / "b")
    return Shelf(folder)


@contextmanager
def inside(shelf: Shelf, redis_url: str, served: str = "a") -> Iterator[httpx.Client]:
    """A service in this process, with a shelf of its own, because a bank can be opened once only."""
    settings = Settings(bundle=shelf.folder / served, bundles=shelf.folder, device="cpu", drain_s=0, **QUIET)
    metrics = new_metrics(settings)
    context = build(settings, metrics, load_model(settings, settings, metrics), redis_url)
    server = uvicorn.Server(uvicorn.Config(create_app(context), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_until(lambda: server.started)
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)


@pytest.fixture(scope="module")
def shelved(mini_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Shelf:
    made = shelf(mini_bundle, tmp_path_factory.mktemp("models") / "bundles")
    flip(other(mini_bundle, made.folder / "broken", seed=3) / "head.onnx")
    narrower(mini_bundle, made.folder / "narrow")
    return made


@pytest.fixture(scope="module")
def http(shelved: Shelf, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    process = Process(
        [*COMMAND, "--bundle", str(shelved.folder / "a"), "--device", "cpu"],
        tmp_path_factory.mktemp("served") / "data",
        M3TR_BUNDLES=str(shelved.folder),
        M3TR_LABEL_GRACE_S="0",
        M3TR_LABEL_HORIZONS_S="1,3600",
        M3TR_DRAIN_S="0",
    )
    with closing_process(process), httpx.Client(base_url=process.url, timeout=60) as client:
        feed(client)
        yield client


@pytest.fixture(autouse=True)
def served_first(request: pytest.FixtureRequest) -> None:
    """Every test of the shared service starts with ``a`` active and no shadow."""
    if "http" in request.fixturenames:
        client: httpx.Client = request.getfixturevalue("http")
        client.delete("/models/shadow")
        assert client.post("/models/a/activate").status_code == 200


def feed(http: httpx.Client) -> None:
    for i, video_id in enumerate(VIDEOS):
        answer = http.put(f"/videos/{video_id}", json={"published_at": T0, "title": f"video {i}", "creator_id": "c"})
        assert answer.status_code == 200, answer.text
    rows = [
        {"video_id": video_id, "time": T0 + 60 * j * (i + 1), "type": "view", "count": 5 * j}
        for i, video_id in enumerate(VIDEOS)
        for j in range(1, 30)
    ]
    answer = http.post("/events", json=rows)
    assert answer.status_code == 200 and answer.json()["accepted"] == len(rows), answer.text


def forecasts(http: httpx.Client) -> list[dict[str, Any]]:
    answers = [http.get(f"/videos/{video_id}/forecast", params={"at": AT}) for video_id in VIDEOS]
    assert [answer.status_code for answer in answers] == [200] * len(VIDEOS)
    return [answer.json() for answer in answers]


def active(http: httpx.Client) -> str:
    return str(http.get("/health/ready").json()["model_version"])


def rows_by_folder(http: httpx.Client) -> dict[str, dict[str, Any]]:
    return {row["folder"]: row for row in http.get("/models").json()["models"]}


def sample(http: httpx.Client, name: str) -> float:
    text = http.get("/metrics").text
    return sum(float(line.split()[-1]) for line in text.splitlines() if line.startswith(f"m3tr_{name}"))


def test_listing(http: httpx.Client, shelved: Shelf) -> None:
    rows = rows_by_folder(http)
    assert set(rows) == {"a", "b", "broken", "narrow"}
    manifest = load_bundle(shelved.folder / "a").manifest
    a = rows["a"]
    assert (a["state"], a["reason"], a["version"]) == ("active", None, manifest.version)
    assert (a["metric"], a["types"]) == (manifest.metric, list(manifest.types))
    assert a["as_of"].startswith("20") and a["evaluation"] == manifest.evaluation["cells"]["pooled"]
    assert rows["b"]["version"] == shelved.hash("b") and rows["b"]["state"] in ("available", "loaded")
    assert rows["broken"]["state"] == "broken" and "head.onnx" in rows["broken"]["reason"]
    assert rows["narrow"]["state"] == "available" and "ahead" in rows["narrow"]["reason"]


def test_switch_gives_the_forecasts_of_a_service_started_with_that_bundle(
    http: httpx.Client, shelved: Shelf, tmp_path: Path, empty_redis: str
) -> None:
    before = forecasts(http)
    response = http.post("/models/b/activate").json()
    assert response["changed"] and response["model_version"] == shelved.hash("b")
    assert response["previous_version"] == shelved.hash("a") and response["warmed"] >= len(VIDEOS)
    switched = forecasts(http)
    assert {made["model_version"] for made in switched} == {shelved.hash("b")}
    assert all(x["forecasts"] != y["forecasts"] for x, y in zip(before, switched, strict=True))
    copy_tree(shelved.folder / "b", tmp_path / "b")
    with inside(Shelf(tmp_path), empty_redis, served="b") as fresh:
        feed(fresh)
        assert forecasts(fresh) == switched
    # Back again: kept in memory, with the same forecasts as before.
    assert rows_by_folder(http)["a"]["state"] == "loaded"
    assert http.post(f"/models/{shelved.hash('a')[:8]}/activate").json()["changed"]
    assert forecasts(http) == before


def test_activating_the_active_model_changes_nothing(http: httpx.Client, shelved: Shelf) -> None:
    switches = sample(http, "model_switches_total")
    for name in ("a", shelved.hash("a"), shelved.hash("a")[:12]):
        response = http.post(f"/models/{name}/activate")
        assert response.status_code == 200 and response.json()["changed"] is False
    assert sample(http, "model_switches_total") == switches


@pytest.mark.parametrize(
    ("name", "status", "text"),
    [("broken", 409, "head.onnx"), ("narrow", 409, "ahead"), ("nothing", 404, "GET /models"), ("../a", 404, "")],
)
def test_failed_activation_changes_nothing(
    http: httpx.Client, shelved: Shelf, name: str, status: int, text: str
) -> None:
    before, failures = forecasts(http), sample(http, "model_load_failures_total")
    for what in ("activate", "shadow"):
        answer = http.post(f"/models/{name}/{what}")
        assert answer.status_code == status and answer.headers["content-type"] == "application/problem+json"
        assert text in answer.text, answer.text
    assert forecasts(http) == before and active(http) == shelved.hash("a")
    assert sample(http, "model_load_failures_total") - failures == (2 if name == "broken" else 0)


def test_prefix_that_is_too_short_is_not_found(http: httpx.Client, shelved: Shelf) -> None:
    assert http.post(f"/models/{shelved.hash('b')[:7]}/activate").status_code == 404


def test_byte_flipped_after_the_start_is_refused_and_a_kept_model_needs_no_files(
    http: httpx.Client, shelved: Shelf
) -> None:
    """The hash is checked when a model is loaded, not when it was first seen."""
    late = other(shelved.folder / "a", shelved.folder / "late", seed=4)
    try:
        assert rows_by_folder(http)["late"]["state"] == "available"
        flip(late / "weights.safetensors")
        answer = http.post("/models/late/activate")
        assert answer.status_code == 409 and "weights.safetensors" in answer.json()["detail"]
        assert active(http) == shelved.hash("a")
        flip(late / "weights.safetensors")
        assert http.post("/models/late/activate").status_code == 200
        assert http.post("/models/a/activate").status_code == 200
        flip(late / "weights.safetensors")
        assert rows_by_folder(http)["late"]["state"] == "broken"
        version = http.get("/models").json()["models"]
        kept = next(row for row in version if row["folder"] == "late")["version"]
        assert http.post(f"/models/{kept}/activate").status_code == 200
        assert active(http) == kept
    finally:
        shutil.rmtree(late)


def test_no_request_fails_while_models_switch(http: httpx.Client, shelved: Shelf) -> None:
    url, over = str(http.base_url), threading.Event()

    def ask(seed: int) -> list[tuple[int, str]]:
        seen, i = [], seed
        with httpx.Client(base_url=url, timeout=30) as client:
            while not over.is_set():
                i += 1
                got = client.get(f"/videos/{VIDEOS[i % len(VIDEOS)]}/forecast")
                seen.append((got.status_code, got.json().get("model_version", got.text)))
                row = {"video_id": VIDEOS[i % len(VIDEOS)], "time": T0 + 40 * 3600 + i, "type": "view"}
                seen.append((client.post("/events", json=[row]).status_code, ""))
        return seen

    with ThreadPoolExecutor(6) as pool:
        clients = [pool.submit(ask, 1000 * n) for n in range(4)]
        try:
            # Two simultaneous requests are handled one after the other.
            both = [pool.submit(http.post, f"/models/{name}/activate") for name in ("b", "a")]
            assert [request.result().status_code for request in both] == [200, 200]
            for name in ("a", "b", "a", "b"):
                assert http.post(f"/models/{name}/activate").status_code == 200
        finally:
            over.set()
        seen = [one for client in clients for one in client.result()]
    assert {status for status, _ in seen} == {200} and len(seen) > 100
    assert {version for _, version in seen} == {"", shelved.hash("a"), shelved.hash("b")}
    assert sample(http, "forecasts_degraded_total") == 0


def test_metrics_show_the_active_model(http: httpx.Client, shelved: Shelf) -> None:
    a, b = shelved.hash("a"), shelved.hash("b")
    hits = sample(http, "state_cache_hits_total")
    assert http.post("/models/b/activate").status_code == 200
    text = http.get("/metrics").text
    assert f'm3tr_build_info{{model_version="{b}"' in text and f'm3tr_build_info{{model_version="{a}"' not in text
    assert f'm3tr_model_info{{model_version="{b}",state="active"}} 1.0' in text
    assert f'm3tr_model_info{{model_version="{a}",state="loaded"}} 1.0' in text
    assert sample(http, "model_switch_duration_seconds_count") == sample(http, "model_switches_total") > 0
    assert sample(http, "state_cache_hits_total") >= hits
    assert promtool_complaints(text) == ""


def test_shadow_is_compared_and_scored_and_changes_nothing(http: httpx.Client, shelved: Shelf) -> None:
    before = forecasts(http)
    response = http.post("/models/b/shadow")
    assert response.status_code == 200 and response.json() == {"model_version": shelved.hash("b"), "share": 1.0}
    assert http.post("/models/a/shadow").status_code == 409
    assert rows_by_folder(http)["b"]["state"] == "shadow"
    made = sample(http, 'shadow_forecasts_total{outcome="made"}')
    now = int(time.time()) - 3600
    for i in range(6):
        body = {
            "video": {"video_id": f"new{i}", "published_at": now},
            "events": [{"time": now + 60 * j, "type": "view", "count": i + j} for j in range(1, 20)],
            "horizons_s": [1, 3600],
        }
        answer = http.post("/predict", json=body)
        assert answer.status_code == 200 and answer.json()["model_version"] == shelved.hash("a")
    wait_until(lambda: sample(http, 'shadow_forecasts_total{outcome="made"}') >= made + 6)
    assert sample(http, "shadow_median_log2_ratio_count") >= 12 and sample(http, "shadow_width_ratio_count") > 0
    assert sample(http, 'shadow_forecasts_total{outcome="failed"}') == 0
    assert forecasts(http) == before

    def scored() -> set[str]:
        return {each["model_version"] for each in http.get("/quality").json()["models"] if each["labels"] >= 6}

    wait_until(lambda: scored() >= {shelved.hash("a"), shelved.hash("b")}, 60)
    # The shadow becomes active without being loaded again.
    assert http.post("/models/b/activate").json()["changed"]
    assert rows_by_folder(http)["b"]["state"] == "active"
    assert sample(http, 'model_info{model_version="' + shelved.hash("b")) == 1
    assert http.delete("/models/shadow").status_code == 204


def test_active_version_survives_a_restart_and_replicas_follow(
    mini_bundle: Path, tmp_path: Path, empty_redis: str
) -> None:
    shelves = [shelf(mini_bundle, tmp_path / f"bundles{i}") for i in range(2)]
    a, b = shelves[0].hash("a"), shelves[0].hash("b")
    with inside(shelves[0], empty_redis) as first:
        with inside(shelves[1], empty_redis) as second:
            assert active(first) == active(second) == a
            assert first.post("/models/b/activate").status_code == 200
            wait_until(lambda: active(second) == b)
        with inside(shelves[1], empty_redis) as second:
            assert active(second) == b and sample(second, "model_choice_failures_total") == 0
    # The stored version is damaged meanwhile: the served bundle is active, and a metric counts that.
    flip(shelves[1].folder / "b" / "head.onnx")
    with inside(shelves[1], empty_redis) as second:
        assert active(second) == a
        assert sample(second, "model_choice_failures_total") == 1
    with redis.Redis.from_url(empty_redis) as client:
        assert client.get("m3tr:active-model") == b.encode()


def test_scopes(empty_redis: str) -> None:
    keys = {scope: f"key-of-{scope}" for scope in ("ingest", "predict", "admin")}
    hashed = tuple(f"{scope}:{hashlib.sha256(key.encode()).hexdigest()}" for scope, key in keys.items())
    calls = [
        ("GET", "/models", {"predict", "admin"}),
        ("POST", "/models/fa4e/activate", {"admin"}),
        ("POST", "/models/fa4e/shadow", {"admin"}),
        ("DELETE", "/models/shadow", {"admin"}),
    ]
    with live(empty_redis, api_keys=hashed) as service:
        for method, path, allowed in calls:
            assert service.http.request(method, path).status_code == 401
            for scope, key in keys.items():
                status = service.http.request(method, path, headers={"x-api-key": key}).status_code
                assert (status != 403) == (scope in allowed), (path, scope, status)


def test_without_a_folder_only_the_served_model_is_listed(empty_redis: str) -> None:
    with live(empty_redis) as service:
        (row,) = service.http.get("/models").json()["models"]
        assert (row["version"], row["state"], row["folder"]) == ("fa4e", "active", None)
        assert service.redis.keys("m3tr:active-model") == []
