"""The demo's service, as a child process."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from index_builder.replay import service_process
from index_builder.replay.client import ServiceError


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "m3tr-serve"
    monkeypatch.setattr(service_process, "_program", lambda name: str(path))
    return path


def write(program: Path, body: str) -> None:
    program.write_text(f"#!{sys.executable}\nimport os, signal, sys, time\n{body}\n")
    program.chmod(0o755)


def test_a_service_starts_with_its_own_stores_and_stops(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://elsewhere")
    monkeypatch.setenv("M3TR_PORT", "80")
    write(
        program,
        "print(sys.argv[1:], [n for n in os.environ if n == 'REDIS_URL' or n.startswith('M3TR_')], flush=True)\n"
        "signal.signal(signal.SIGTERM, lambda *_: (os.write(1, b'stopped\\n'), os._exit(0)))\n"
        "print('m3tr-serve listens on http://127.0.0.1:4711', flush=True)\n"
        "time.sleep(60)",
    )
    log = tmp_path / "log"
    with service_process.serving(tmp_path / "bundle", tmp_path / "store", log) as served:
        assert served.url == "http://127.0.0.1:4711"
    first, _, last = log.read_text().splitlines()
    assert first == str(["--bundle", f"{tmp_path}/bundle", "--data-dir", f"{tmp_path}/store", "--port", "0"]) + " []"
    assert last == "stopped"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("print('wrong bundle', file=sys.stderr); sys.exit(3)", r"did not start \(code 3\):\nwrong bundle"),
        ("time.sleep(60)", r"did not listen within 0\.5 s"),
    ],
)
def test_a_service_that_does_not_start_is_an_error(
    program: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, body: str, message: str
) -> None:
    monkeypatch.setattr(service_process, "START_S", 0.5 if "sleep" in body else 20.0)
    write(program, body)
    with (
        pytest.raises(ServiceError, match=message),
        service_process.serving(tmp_path, tmp_path, tmp_path / "log"),
    ):
        pass


def test_a_service_that_crashes_or_fails_to_stop_is_an_error(program: Path, tmp_path: Path) -> None:
    listening = "print('listens on http://127.0.0.1:1', flush=True)\n"
    write(program, listening + "print('broken', file=sys.stderr); sys.exit(5)")
    with (
        service_process.serving(tmp_path, tmp_path, tmp_path / "log") as served,
        pytest.raises(ServiceError, match="ended with code 5:\nbroken"),
    ):
        served.wait()
    write(program, "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n" + listening + "time.sleep(60)")
    with (
        pytest.raises(ServiceError, match="stopped with code 7"),
        service_process.serving(tmp_path, tmp_path, tmp_path / "log"),
    ):
        pass
