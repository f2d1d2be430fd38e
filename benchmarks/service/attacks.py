"""One client misbehaves while another asks for forecasts: what the other notices, and what the service holds.

    python -m benchmarks.service.attacks --bundle BUNDLE [ATTACK ...] [--seconds 10]

The service, the client and the attacker are processes of their own on this machine; the attacker gives way to the others (nice 19),
since in real life it has a machine of its own. Each attack: p50 and p99 of GET forecast before and after it, once it is quiet again, and
during it; the service's largest resident set; whether it lives. At the end how long it takes to stop while idle WebSockets, streams and
slow readers are there. The first row is none: a process that is busy, and does not touch the service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np

VICTIM, ATTACKER = "key-of-the-one-who-asks", "key-of-the-one-who-attacks"
LIMIT_MB: Final = 1500
LIMIT_RATIO: Final = 2.0
VIDEOS: Final = 20
RATE: Final = 80
CALM_S: Final = 120.0
PORT = 0


def head(method: str, path: str, *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {ATTACKER}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


async def line() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", PORT, limit=4096)


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return float(p50), float(p99)


async def post(path: str, body: bytes, *more: str) -> None:
    reader, writer = await line()
    writer.write(head("POST", path, f"Content-Length: {len(body)}", *more) + body)
    await writer.drain()
    await reader.read(200)
    writer.close()


async def burn() -> None:
    """No attack: it takes what the attackers take of the machine, and nothing of the service."""
    while True:
        sum(range(10_000))


async def endless_header() -> None:
    _, writer = await line()
    writer.write(b"GET /health/live HTTP/1.1\r\n")
    while True:
        writer.write(b"X-Filler: " + b"a" * 4000 + b"\r\n")
        await writer.drain()


async def idle_socket() -> None:
    reader, _ = await line()
    await reader.read(1)


async def slow_sender() -> None:
    _, writer = await line()
    writer.write(head("POST", "/events", "Content-Type: application/json", "Content-Length: 1000000"))
    while True:
        writer.write(b"[")
        await writer.drain()
        await asyncio.sleep(0.3)


async def slow_reader() -> None:
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        slow.setblocking(False)
        loop = asyncio.get_running_loop()
        await loop.sock_connect(slow, ("127.0.0.1", PORT))
        hours = "&".join(f"horizons_s={3600 * h}" for h in range(1, 60))
        asked = head("GET", f"/videos/v0/forecast?{hours}")
        while True:
            await loop.sock_sendall(slow, asked)


async def busy_reader() -> None:
    reader, writer = await line()
    asked = head("GET", "/videos/v0/forecast")
    while True:
        writer.write(asked)
        if not await reader.read(65536):
            return


@cache
def zeros() -> bytes:
    return gzip.compress(bytes(2**28), 9)


@cache
def refused_rows() -> bytes:
    row = json.dumps({"video_id": "v0", "time": int(time.time()) - 60, "type": "view"}).encode() + b"\n"
    return gzip.compress(row * 1_500_000, 9)


@cache
def many_keys() -> bytes:
    return json.dumps([{f"k{i}": 0 for i in range(700_000)}], separators=(",", ":")).encode()[: 8 * 2**20]


async def gzip_bomb() -> None:
    await post("/events", zeros(), "Content-Type: application/x-ndjson", "Content-Encoding: gzip")
    await post("/events", refused_rows(), "Content-Type: application/x-ndjson", "Content-Encoding: gzip")


async def unknown_keys() -> None:
    await post("/events", many_keys(), "Content-Type: application/json")


async def full_bodies() -> None:
    rows = b",".join([b'{"video_id":"v0","time":1,"type":"nothing","id":"%d"}' % i for i in range(9_999)])
    await post("/events", b"[" + rows + b"]", "Content-Type: application/json")


async def watcher() -> None:
    reader, writer = await line()
    writer.write(head("GET", "/videos/v0/forecast/stream?horizons_s=3600", "Accept: text/event-stream"))
    while await reader.read(65536):
        pass


async def websocket() -> None:
    reader, writer = await line()
    writer.write(
        head(
            "GET",
            "/events/stream",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
    )
    await reader.read(65536)
    await reader.read(65536)


async def unknown_ids() -> None:
    rows = [
        {"video_id": f"nobody-{os.urandom(6).hex()}", "time": int(time.time()) - 5, "type": "view"} for _ in range(5000)
    ]
    await post("/events", json.dumps(rows).encode(), "Content-Type: application/json")


CONTROL: Final = "none, a busy process"
ATTACKS: Final[dict[str, tuple[int, Callable[[], Awaitable[None]]]]] = {
    CONTROL: (1, burn),
    "endless-header": (16, endless_header),
    "idle-sockets": (1024, idle_socket),
    "slow-senders": (256, slow_sender),
    "slow-readers": (128, slow_reader),
    "busy-readers": (128, busy_reader),
    "gzip-bombs": (64, gzip_bomb),
    "full-bodies": (16, full_bodies),
    "unknown-keys": (8, unknown_keys),
    "sse-watchers": (500, watcher),
    "idle-websockets": (256, websocket),
    "unknown-ids": (4, unknown_ids),
}
MADE: Final[dict[str, Sequence[Callable[[], bytes]]]] = {
    "gzip-bombs": (zeros, refused_rows),
    "unknown-keys": (many_keys,),
}
"""Bodies that take long to make: they are made before an attack begins."""


async def attack(name: str) -> None:
    """Keep the attack up, for ever."""
    number, one = ATTACKS[name]

    async def again() -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await one()
            await asyncio.sleep(0.2)

    await asyncio.gather(*(again() for _ in range(number)))


class Asker:
    """Asks for the forecasts of ``VIDEOS`` videos, ``RATE`` a second, on one connection: one in 20 or so is computed anew."""

    def __init__(self, port: int) -> None:
        self.port, self.failed = port, 0

    def ask(self, duration_s: float) -> list[float]:
        """The seconds that each took."""
        seconds = list[float]()
        self.failed = 0
        end, i = time.monotonic() + duration_s, 0
        sock = self.connect()
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                sock.sendall(
                    f"GET /videos/v{i % VIDEOS}/forecast?horizons_s=3600 HTTP/1.1\r\nHost: localhost\r\n"
                    f"Authorization: Bearer {VICTIM}\r\n\r\n".encode()
                )
                if not self.answered(sock):
                    self.failed += 1
            except OSError:
                self.failed += 1
                sock = self.connect()
            seconds.append(time.perf_counter() - began)
            i += 1
            time.sleep(max(0.0, 1 / RATE - seconds[-1]))
        sock.close()
        return seconds

    def settle(self) -> None:
        """Wait until answers are as quick as they were before the attack, at most ``CALM_S``."""
        end = time.monotonic() + CALM_S
        while time.monotonic() < end and percentiles(self.ask(1))[0] > self.quick_ms:
            pass

    quick_ms = float("inf")
    """A median that shows that nothing else is going on."""

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def answered(self, sock: socket.socket) -> bool:
        got = b""
        while b"\r\n\r\n" not in got:
            got += sock.recv(65536) or self.gone()
        found = re.search(rb"content-length: *(\d+)", got.lower())
        size = got.index(b"\r\n\r\n") + 4 + int(found.group(1) if found else 0)
        while len(got) < size:
            got += sock.recv(65536) or self.gone()
        return got.startswith(b"HTTP/1.1 200")

    def gone(self) -> bytes:
        raise ConnectionResetError


class Peak(threading.Thread):
    """The largest resident set of a process, MB, read 20 times a second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.most, self.going = pid, 0.0, True

    def run(self) -> None:
        while self.going:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{self.pid}/status").read_text()
                self.most = max(self.most, int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024)
            time.sleep(0.05)


def start(bundle: Path, work: Path) -> tuple[subprocess.Popen[bytes], int]:
    keys = " ".join(
        f"{scope}:{hashlib.sha256(key.encode()).hexdigest()}" for scope, key in (("admin", VICTIM), ("admin", ATTACKER))
    )
    environment = {
        **os.environ,
        "M3TR_API_KEYS": keys,
        "M3TR_SHUTDOWN_S": "10",
        "OMP_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
    shutil.copytree(bundle, work / "bundle")
    log = (work / "log").open("wb")
    command = [
        sys.executable,
        "-m",
        "service.cli",
        "--bundle",
        str(work / "bundle"),
        "--port",
        "0",
        "--data-dir",
        str(work / "store"),
    ]
    process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    while process.poll() is None:
        if found := re.search(rb"listens on http://\S+:(\d+)", (work / "log").read_bytes()):
            return process, int(found.group(1))
        time.sleep(0.1)
    sys.exit((work / "log").read_text())


def attacker(name: str, port: int) -> subprocess.Popen[bytes]:
    foe = subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-m", "benchmarks.service.attacks", "--only", name, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert foe.stdout is not None
    foe.stdout.readline()
    return foe


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def prepare(port: int) -> None:
    global PORT
    PORT = port
    now = int(time.time())
    for i in range(VIDEOS):
        body = {
            "video": {"video_id": f"v{i}", "published_at": now - 7200},
            "counters": [{"time": now - 60, "views": 100 + i}],
        }
        await post("/predict", json.dumps(body).encode(), "Content-Type: application/json")


def measured(bundle: Path, names: list[str], seconds: float) -> bool:
    good = True
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(bundle, Path(folder))
        asyncio.run(prepare(port))
        asker = Asker(port)
        asker.ask(2)
        print(
            "| attack | p50, p99 quiet | p50, p99 during it | times quiet | refused or failed | memory | right |\n"
            "|---|---|---|---|---|---|---|"
        )
        before = asker.ask(seconds)
        asker.quick_ms = 2 * percentiles(before)[0]
        for name in names:
            peak, foe = Peak(process.pid), attacker(name, port)
            peak.start()
            time.sleep(3)
            took = asker.ask(seconds)
            failed = asker.failed
            end(foe)
            peak.going = False
            alive = process.poll() is None
            if alive:
                asker.settle()
            after = asker.ask(seconds)
            quiet, during = percentiles(before + after), percentiles(took)
            before = after
            ratio = during[1] / quiet[1]
            right = alive and failed == 0 and ratio <= LIMIT_RATIO and peak.most <= LIMIT_MB
            good &= right or name == CONTROL
            print(
                f"| {name} | {quiet[0]:.1f}, {quiet[1]:.1f} ms | {during[0]:.1f}, {during[1]:.1f} ms | {ratio:.2f} | {failed} | "
                f"{peak.most:,.0f} MB | {'yes' if right else 'no'} |",
                flush=True,
            )
            if not alive:
                print((Path(folder) / "log").read_text()[-2000:])
                return False
        foes = [attacker(name, port) for name in ("idle-websockets", "sse-watchers", "slow-readers")]
        time.sleep(4)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        took = time.monotonic() - began
        stopped = process.poll() is not None
        good &= stopped and took < 13
        print(
            f"\nA stop with idle WebSockets, watchers and slow readers: {took:.1f} s"
            if stopped
            else "\nIt did not stop within 60 s"
        )
        for foe in foes:
            end(foe)
        if not stopped:
            end(process)
    return good


def main() -> None:
    global PORT
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--only", help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, default=0, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.only:
        PORT = given.port
        for make in MADE.get(given.only, ()):
            make()
        print("begins", flush=True)
        asyncio.run(attack(given.only))
    if unknown := set(given.attacks) - set(ATTACKS):
        parser.error(f"attack: {unknown.pop()!r}; allowed: {', '.join(ATTACKS)}")
    if given.bundle is None:
        parser.error("--bundle: missing; a folder that m3tr-build train wrote")
    sys.exit(not measured(given.bundle, given.attacks or list(ATTACKS), given.seconds))


if __name__ == "__main__":
    main()
