"""Real Redis servers for tests: one, a pair with a replica, a trio of Sentinels, a cluster; killed at the end."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import redis

from service.store.redis.embedded_server import packaged_binary
from tests.service.redis_clients import connected
from tests.service.running import wait_until

BINARY = shutil.which("redis-server") or str(packaged_binary())
SLOTS = 16384
_HIGHEST_PORT = 50_000
"""A node of a cluster also takes its port plus 10,000."""


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < _HIGHEST_PORT:
            return port


class RedisProcess:
    """A Redis server on a port of its own."""

    def __init__(self, folder: Path, *options: str, port: int | None = None) -> None:
        self.folder, self.options = folder, options
        self.folder.mkdir(parents=True, exist_ok=True)
        for _ in range(5):
            self.port = port or free_port()
            self.start()
            if self.popen.poll() is None:
                return
            # Another process may have taken the port, or that of the cluster's bus, between the choice and the start.
        raise AssertionError((self.folder / "log").read_text())

    def start(self) -> None:
        command = [BINARY, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder), "--save", ""]
        with (self.folder / "log").open("ab") as log:
            self.popen = subprocess.Popen([*command, *self.options], stdout=log, stderr=log, cwd=self.folder)
        with self.client() as client:
            wait_until(lambda: self.popen.poll() is not None or answers(client))

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self, **options: Any) -> redis.Redis:
        return redis.Redis(host="127.0.0.1", port=self.port, socket_timeout=5, **options)

    def kill(self) -> None:
        self.popen.kill()
        self.popen.wait()


def answers(client: redis.Redis) -> bool:
    try:
        return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except redis.RedisError:
        return False


@contextmanager
def server(folder: Path, *options: str) -> Iterator[RedisProcess]:
    process = RedisProcess(folder, *options)
    try:
        yield process
    finally:
        process.kill()


@contextmanager
def pair(folder: Path) -> Iterator[tuple[RedisProcess, RedisProcess]]:
    """A primary and a replica that is in sync."""
    quick = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
    with server(folder / "a", *quick) as first, server(folder / "b", *quick) as second:
        with second.client() as client:
            follow(client, first)
        yield first, second


def follow(client: redis.Redis, primary: RedisProcess) -> None:
    client.replicaof("127.0.0.1", str(primary.port))
    wait_until(lambda: client.info("replication")["master_link_status"] == "up")
    with primary.client() as writer:
        # A replica of Redis 7.0 may skip the first command after the link is up.
        writer.set("first", 1)
        assert writer.wait(1, 5000) == 1


class Address:
    """One address for a changing server: forwards new connections to ``target``; existing ones stay."""

    def __init__(self, target: int) -> None:
        self.target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lines: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}/0"

    def close(self) -> None:
        for line in (self._listener, *self._lines):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)
            line.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                try:
                    far = socket.create_connection(("127.0.0.1", self.target))
                except OSError:
                    near.close()
                    continue
                self._lines += [near, far]
                for a, b in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(a, b), daemon=True).start()

    @staticmethod
    def _pump(a: socket.socket, b: socket.socket) -> None:
        with suppress(OSError):
            while data := a.recv(65536):
                b.sendall(data)
        for line in (a, b):
            with suppress(OSError):
                line.shutdown(socket.SHUT_RDWR)


@contextmanager
def sentinels(folder: Path, primary: RedisProcess, *, down_ms: int = 500) -> Iterator[list[RedisProcess]]:
    """Three Sentinels that monitor ``primary`` as mymaster, and its replica."""
    with ExitStack() as stack:
        started: list[RedisProcess] = []
        for number in range(3):
            place = folder / f"sentinel{number}"
            place.mkdir(parents=True)
            (place / "sentinel.conf").write_text(
                f"sentinel monitor mymaster 127.0.0.1 {primary.port} 2\n"
                f"sentinel down-after-milliseconds mymaster {down_ms}\n"
                "sentinel failover-timeout mymaster 3000\n"
            )
            one = Sentinel(place)
            stack.callback(one.kill)
            started.append(one)
        for one in started:  # type: ignore[assignment]
            client = stack.enter_context(one.client())
            wait_until(partial(_in_step, client))
        yield started


class Sentinel(RedisProcess):
    def start(self) -> None:
        command = [
            BINARY,
            str(self.folder / "sentinel.conf"),
            "--sentinel",
            "--port",
            str(self.port),
            "--bind",
            "127.0.0.1",
        ]
        with (self.folder / "log").open("ab") as log:
            self.popen = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        with self.client() as client:
            wait_until(lambda: self.popen.poll() is not None or answers(client))


def _in_step(client: redis.Redis) -> bool:
    state = client.sentinel_master("mymaster")
    return bool(
        isinstance(state, dict)
        and state["num-other-sentinels"] == 2
        and state["num-slaves"] == 1
        and state["flags"] == "master"
    )


class Cluster:
    """Three shards: first the primaries, then the replicas, if any."""

    def __init__(self, nodes: list[RedisProcess]) -> None:
        self.nodes = nodes

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in self.nodes[:3])

    def client(self) -> Any:
        return connected(self.url)


def _linked(client: Any) -> bool:
    return bool(client.info("replication")["master_link_status"] == "up")


@contextmanager
def cluster(folder: Path, replicas: int = 0) -> Iterator[Cluster]:
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--repl-diskless-sync-delay", "0")
    with ExitStack() as stack:
        nodes = [stack.enter_context(server(folder / f"n{i}", *options)) for i in range(3 + replicas)]
        clients = [stack.enter_context(node.client()) for node in nodes]
        for i, client in enumerate(clients):
            client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", nodes[0].port)
        for i, client in enumerate(clients[:3]):
            client.execute_command("CLUSTER", "ADDSLOTSRANGE", i * SLOTS // 3, (i + 1) * SLOTS // 3 - 1)
        wait_until(lambda: all(known(client) == len(nodes) for client in clients))
        for i, client in enumerate(clients[3:]):
            primary = clients[i % 3].execute_command("CLUSTER", "MYID")
            wait_until(partial(_replicates, client, primary))
            wait_until(partial(_linked, client))
        wait_until(lambda: all(_good(client) for client in clients))
        yield Cluster(nodes)


def known(client: redis.Redis) -> int:
    return int(cluster_info(client)["cluster_known_nodes"])


def _good(client: redis.Redis) -> bool:
    told = cluster_info(client)
    return told["cluster_state"] == "ok" and told["cluster_slots_ok"] == str(SLOTS)


def _replicates(client: redis.Redis, primary: Any) -> bool:
    with suppress(redis.ResponseError):
        client.execute_command("CLUSTER", "REPLICATE", primary)
        return True
    return False


def cluster_info(client: redis.Redis) -> dict[str, str]:
    told = client.execute_command("CLUSTER", "INFO")
    if isinstance(told, dict):
        return {str(name): str(value) for name, value in told.items()}
    return dict(line.split(":", 1) for line in told.decode().split())
