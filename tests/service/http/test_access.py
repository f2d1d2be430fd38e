"""API keys and settings."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from service.settings import Settings
from service.store.keys import video_prefix
from tests.service.running import T0, live

KEYS = {scope: f"key-of-{scope}" for scope in ("ingest", "predict", "admin")}
HASHED = tuple(f"{scope}:{hashlib.sha256(key.encode()).hexdigest()}" for scope, key in KEYS.items())
CALLS = [
    ("PUT", "/videos/v", "ingest"),
    ("POST", "/events", "ingest"),
    ("POST", "/counters", "ingest"),
    ("GET", "/videos/v", "predict"),
    ("GET", "/videos/v/forecast", "predict"),
    ("GET", "/videos/v/forecast/stream", "predict"),
    ("GET", "/videos", "predict"),
    ("POST", "/predict", "predict"),
    ("DELETE", "/videos/v", "admin"),
]


NO_KEYS: list[Any] = [{}, {"x-api-key": "wrong"}, {"authorization": "Bearer é".encode()}]


def test_scopes(empty_redis: str) -> None:
    with live(empty_redis, api_keys=HASHED, host="127.0.0.1") as service:
        for method, path, scope in CALLS:
            for held, key in KEYS.items():
                for headers in ({"authorization": f"Bearer {key}"}, {"x-api-key": key}):
                    status = service.http.request(method, path, headers=headers).status_code
                    assert (status == 403) == (held not in (scope, "admin")), (method, path, held, status)
                    assert status != 401
            for headers in NO_KEYS:
                answer = service.http.request(method, path, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        for path in ("/metrics", "/health/live", "/health/ready"):
            assert service.http.get(path).status_code == 200


def test_predicting_a_new_video_also_needs_the_scope_ingest(empty_redis: str) -> None:
    both = f"predict:{hashlib.sha256(b'both').hexdigest()}", f"ingest:{hashlib.sha256(b'both').hexdigest()}"
    body = {"video": {"video_id": "v", "published_at": T0}}
    with live(empty_redis, api_keys=HASHED + both) as service:
        assert service.http.post("/predict", json=body, headers={"x-api-key": KEYS["predict"]}).status_code == 403
        assert not service.redis.keys(video_prefix("v") + "*")
        assert service.http.post("/predict", json=body, headers={"x-api-key": "both"}).status_code == 200


def test_keys_come_from_environment_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# comment\n\n{HASHED[2]}\n")
    monkeypatch.setenv("M3TR_API_KEYS", f"{HASHED[0]}, {HASHED[1]}")
    monkeypatch.setenv("M3TR_API_KEYS_FILE", str(file))
    chosen = Settings(bundle=Path("b"), host="0.0.0.0")
    assert chosen.keys() == HASHED
    assert HASHED[0] not in repr(chosen)


def test_a_missing_key_file_is_reported(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="no-such"):
        Settings(bundle=Path("b"), api_keys_file=tmp_path / "no-such")


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("host", "0.0.0.0"),
        ("host", "::"),
        ("host", "example.org"),
        ("api_keys", "admin:secret"),
        ("api_keys", "root:" + "0" * 64),
        ("port", 70_000),
        ("max_body_bytes", 10),
        ("dedup_ttl_s", 5),
        ("appendfsync", "no"),
        ("store_deadline_ms", 0),
        ("bank_deadline_ms", 20_000),
        ("unknown", 1),
    ],
)
def test_unsafe_settings_are_refused(setting: str, value: object) -> None:
    with pytest.raises(ValidationError, match=setting):
        Settings(**{"bundle": Path("b"), setting: value})  # type: ignore[arg-type]


def test_urls_are_read_without_the_prefix_and_masked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://:hidden@host:1")
    monkeypatch.setenv("QDRANT_URL", "http://q:6333")
    chosen = Settings(bundle=Path("b"), host="::1")
    assert chosen.redis_url is not None and chosen.redis_url.get_secret_value() == "redis://:hidden@host:1"
    assert chosen.qdrant_url is not None and "hidden" not in repr(chosen)
    assert Settings(bundle=Path("b"), redis_url="redis://other").redis_url != chosen.redis_url


def test_every_setting_has_a_description() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
