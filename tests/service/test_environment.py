"""Settings from the environment variables of deployments."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import ValidationError

from service.environment import service_links, unknown
from service.settings import Settings
from tests import patience
from tests.service.running import ROOT

pytestmark = pytest.mark.slow

KUBERNETES = {
    "M3TR_PORT": "tcp://10.96.0.12:8000",
    "M3TR_SERVICE_HOST": "10.96.0.12",
    "M3TR_SERVICE_PORT": "8000",
    "M3TR_SERVICE_PORT_HTTP": "8000",
    "M3TR_PORT_8000_TCP": "tcp://10.96.0.12:8000",
    "M3TR_PORT_8000_TCP_PROTO": "tcp",
    "M3TR_PORT_8000_TCP_PORT": "8000",
    "M3TR_PORT_8000_TCP_ADDR": "10.96.0.12",
    # A second Service of the release.
    "M3TR_REDIS_PORT": "tcp://10.96.0.13:6379",
    "M3TR_REDIS_SERVICE_HOST": "10.96.0.13",
}


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("M3TR_"):
            monkeypatch.delenv(name)


def test_variables_of_kubernetes_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in KUBERNETES.items():
        monkeypatch.setenv(name, value)
    assert Settings(bundle=Path("b")).port == 8000
    assert service_links(KUBERNETES) == sorted(KUBERNETES)
    assert unknown(KUBERNETES, Settings.model_fields) == []


def test_a_port_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M3TR_PORT", "8123")
    assert Settings(bundle=Path("b")).port == 8123
    assert service_links({"M3TR_PORT": "8123", "M3TR_HOST": "::1"}) == []


def test_empty_variables_are_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Settings.model_fields:
        monkeypatch.setenv(f"M3TR_{name.upper()}", "")
    for name in ("REDIS_URL", "QDRANT_URL", "QDRANT_API_KEY"):
        monkeypatch.setenv(name, "")
    empty = Settings(bundle=Path("b"))
    for name in Settings.model_fields:
        monkeypatch.delenv(f"M3TR_{name.upper()}")
    assert empty == Settings(bundle=Path("b"))


def test_unknown_variables_are_reported() -> None:
    lines = unknown(
        {"M3TR_FUTURE_SKEW": "300", "M3TR_RQUEST_DEADLINE_MS": "1", "M3TR_PORT": "1", "OTHER": "x"},
        Settings.model_fields,
    )
    assert lines == [
        "M3TR_FUTURE_SKEW is not a setting and has no effect; did you mean M3TR_FUTURE_SKEW_S?",
        "M3TR_RQUEST_DEADLINE_MS is not a setting and has no effect; did you mean M3TR_REQUEST_DEADLINE_MS?",
    ]


@pytest.mark.parametrize("text", ["", "\n\n", "# only a comment\n", " \n # another\n"])
def test_a_keys_file_without_a_key_is_refused(tmp_path: Path, text: str) -> None:
    file = tmp_path / "keys"
    file.write_text(text)
    with pytest.raises(ValidationError, match="holds no key"):
        Settings(bundle=Path("b"), api_keys_file=file)
    with pytest.raises(ValidationError, match="holds no key"):
        Settings(bundle=Path("b"), api_keys_file=file, api_keys=("admin:" + "0" * 64,))


def test_a_keys_file_may_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    key = "admin:" + hashlib.sha256(b"k").hexdigest()
    file = tmp_path / "keys"
    file.write_bytes(b"\xef\xbb\xbf" + key.encode() + b"\r\n")
    assert Settings(bundle=Path("b"), api_keys_file=file).keys() == (key,)


def started(**environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("M3TR_")}
    return patience.run(
        [sys.executable, "-m", "service.cli"],
        cwd=ROOT,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        seconds=60,
    )


@pytest.mark.parametrize(
    "environment",
    [
        {"M3TR_PORT": "hidden-7"},
        {"M3TR_API_KEYS": "admin:hidden-7"},
        {"M3TR_API_KEYS_FILE": "/nowhere/hidden"},
        {"M3TR_QDRANT_API_KEY": "hidden-7", "M3TR_REQUEST_DEADLINE_MS": "soon"},
        {"M3TR_ROOT_PATH": "m3tr/"},
        {"M3TR_ADAPTIVE": "perhaps"},
    ],
)
def test_invalid_settings_give_one_line_without_secrets(environment: dict[str, str]) -> None:
    ended = started(M3TR_BUNDLE="/nowhere", **environment)
    assert ended.returncode in (1, 2)
    assert "Traceback" not in ended.stderr and "hidden-7" not in ended.stderr
    assert len(ended.stderr.splitlines()) == 1
    named = [name for name in environment if name in ended.stderr or name.removeprefix("M3TR_").lower() in ended.stderr]
    assert named or "/nowhere/hidden" in ended.stderr, ended.stderr


def test_ignored_variables_are_reported_at_the_start() -> None:
    ended = started(M3TR_BUNDLE="/nowhere", M3TR_FUTURE_SKEW="1", **KUBERNETES)
    first, second, *_ = ended.stderr.splitlines()
    assert "Kubernetes" in first and "M3TR_PORT" in first
    assert "M3TR_FUTURE_SKEW is not a setting" in second and "did you mean M3TR_FUTURE_SKEW_S?" in second
