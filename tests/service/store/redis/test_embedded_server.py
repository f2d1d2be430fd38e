"""The embedded server: never two on the same files, whichever process was killed before."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import redis

from service.store.redis.embedded_server import EmbeddedError, EmbeddedServer
from tests import patience
from tests.service.conftest import Starter
from tests.service.running import ROOT, T0, is_dead, live, wait_until

pytestmark = pytest.mark.slow


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path, appendfsync="always")
    yield server
    server.stop()


def test_data_survives_a_stop_and_a_kill(server: EmbeddedServer, tmp_path: Path) -> None:
    for step in range(3):
        server.start()
        with redis.Redis.from_url(server.url) as client:
            assert client.incr("n") == step + 1
            assert client.config_get("appendfsync")["appendfsync"] == "always"
        if step:
            server.stop()
        else:
            os.kill(int((tmp_path / "store" / "server.lock").read_text()), signal.SIGKILL)
            wait_until(lambda: not server.alive)


def test_two_services_never_share_a_folder(server: EmbeddedServer, tmp_path: Path) -> None:
    server.start()
    second = EmbeddedServer(tmp_path, appendfsync="always")
    with pytest.raises(EmbeddedError, match="another service"):
        second.start()
    second.stop()
    assert server.alive


def test_a_path_too_long_for_a_socket(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path / ("x" * 100) / ("y" * 100), appendfsync="everysec")
    server.start()
    with redis.Redis.from_url(server.url) as client:
        assert client.ping()
    server.stop()


def test_a_binary_that_does_not_start_is_reported(tmp_path: Path) -> None:
    server = EmbeddedServer(tmp_path, appendfsync="everysec", binary=Path("/bin/false"))
    with pytest.raises(EmbeddedError, match="ended while starting"):
        server.start()
    server.stop()


def test_the_server_of_a_killed_service_ends_with_it(tmp_path: Path, fake_process: Starter) -> None:
    first = fake_process(tmp_path / "data")
    orphan = first.server_pid
    with live(f"unix://{tmp_path}/data/store/server.sock") as service:
        service.register("v")
    first.kill(server=False)
    wait_until(lambda: is_dead(orphan))
    second = fake_process(tmp_path / "data")
    assert second.server_pid != orphan
    with live(f"unix://{tmp_path}/data/store/server.sock") as service:
        assert service.http.get("/videos/v").json()["published_at"].startswith("2025-10-09")
    assert second.stop() == 0


def test_the_service_restarts_a_dead_server(tmp_path: Path, fake_process: Starter) -> None:
    process = fake_process(tmp_path / "data")
    with httpx.Client(base_url=process.url) as http:
        assert http.put("/videos/v", json={"published_at": T0}).status_code == 200
        dead = process.server_pid
        os.kill(dead, signal.SIGKILL)
        wait_until(lambda: http.put("/videos/w", json={"published_at": T0}).status_code == 200)
        assert process.server_pid != dead
        assert http.get("/videos/v").status_code == 200
        assert "m3tr_store_restarts_total 1.0" in http.get("/metrics").text
    pid = process.server_pid
    assert process.stop() == 0
    assert is_dead(pid)


def test_a_server_left_behind_is_stopped_by_the_next_service(tmp_path: Path, fake_process: Starter) -> None:
    """A server that was started by another process, so that the kernel does not end it with its parent."""
    code = (
        "import os, pathlib, service.store.redis.embedded_server as e, sys\n"
        "e._end_with = lambda parent: (lambda: None)\n"
        "server = e.EmbeddedServer(pathlib.Path(sys.argv[1]), appendfsync='everysec')\n"
        "server.start(); os._exit(0)"
    )
    patience.run([sys.executable, "-c", code, str(tmp_path / "data")], check=True, cwd=ROOT, seconds=60)
    orphan = int((tmp_path / "data" / "store" / "server.lock").read_text())
    assert not is_dead(orphan)
    second = fake_process(tmp_path / "data")
    assert second.server_pid != orphan and is_dead(orphan)
    assert second.stop() == 0
