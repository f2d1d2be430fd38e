"""One client misbehaves while another requests forecasts: what the other client notices, and what the service uses.

    python -m benchmarks.service.attacks --bundle BUNDLE [ATTACK ...] [--seconds 10]

The service, the client and the attacker are separate processes on this machine. The attacker runs at nice 19, because in reality it
has a machine of its own. For each attack: p50 and p99 of GET forecast while all is quiet (before the attack, and after it has settled)
and during the attack, the service's largest resident set, and whether the service survives. At the end: how long the service takes to
stop while there are idle WebSockets, streams and slow readers. The first row is no attack: a process that is busy and does not touch
the service.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np

from benchmarks.service import attackers
from benchmarks.service.attackers import API_KEY, ATTACKS, CONTROL

VICTIM_KEY: Final = "key-of-the-victim"
LIMIT_MB: Final = 1500
LIMIT_RATIO: Final = 2.0
VIDEOS: Final = 20
RATE: Final = 80
SETTLE_S: Final = 120.0


def percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    """p50 and p99 in milliseconds."""
    p50, p99 = np.percentile(seconds, [50, 99]) * 1000
    return float(p50), float(p99)


class Victim:
    """Requests the forecasts of ``VIDEOS`` videos, ``RATE`` per second, on one connection; about one in 20 is not cached."""

    def __init__(self, port: int) -> None:
        self.port, self.failed = port, 0

    def forecast(self, duration_s: float) -> list[float]:
        """Request forecasts for ``duration_s``; return the latency of each, seconds."""
        seconds = list[float]()
        self.failed = 0
        end, i = time.monotonic() + duration_s, 0
        sock = self.connect()
        while time.monotonic() < end:
            began = time.perf_counter()
            try:
                sock.sendall(
                    f"GET /videos/v{i % VIDEOS}/forecast?horizons_s=3600 HTTP/1.1\r\nHost: localhost\r\n"
                    f"Authorization: Bearer {VICTIM_KEY}\r\n\r\n".encode()
                )
                if not self.succeeded(sock):
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
        """Wait until responses are as quick as before the attack, for up to ``SETTLE_S``."""
        end = time.monotonic() + SETTLE_S
        while time.monotonic() < end and percentiles(self.forecast(1))[0] > self.quick_ms:
            pass

    quick_ms = float("inf")
    """Median latency below which the service is quiet, milliseconds."""

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=15)

    def succeeded(self, sock: socket.socket) -> bool:
        got = b""
        while b"\r\n\r\n" not in got:
            got += sock.recv(65536) or self.closed()
        found = re.search(rb"content-length: *(\d+)", got.lower())
        size = got.index(b"\r\n\r\n") + 4 + int(found.group(1) if found else 0)
        while len(got) < size:
            got += sock.recv(65536) or self.closed()
        return got.startswith(b"HTTP/1.1 200")

    def closed(self) -> bytes:
        raise ConnectionResetError


class Peak(threading.Thread):
    """Records the largest resident set of a process, MB, 20 times per second."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self.pid, self.megabytes, self.going = pid, 0.0, True

    def run(self) -> None:
        while self.going:
            with contextlib.suppress(OSError):
                status = Path(f"/proc/{self.pid}/status").read_text()
                self.megabytes = max(self.megabytes, int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) / 1024)
            time.sleep(0.05)


def start(bundle: Path, work: Path) -> tuple[subprocess.Popen[bytes], int]:
    keys = " ".join(
        f"{scope}:{hashlib.sha256(key.encode()).hexdigest()}"
        for scope, key in (("admin", VICTIM_KEY), ("admin", API_KEY))
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


def start_attacker(name: str, port: int) -> subprocess.Popen[bytes]:
    attacker_process = subprocess.Popen(
        ["nice", "-n", "19", sys.executable, "-m", "benchmarks.service.attackers", name, str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert attacker_process.stdout is not None
    attacker_process.stdout.readline()
    return attacker_process


def end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


async def prepare(port: int) -> None:
    attackers.PORT = port
    now = int(time.time())
    for i in range(VIDEOS):
        body = {
            "video": {"video_id": f"v{i}", "published_at": now - 7200},
            "counters": [{"time": now - 60, "views": 100 + i}],
        }
        await attackers.post("/predict", json.dumps(body).encode(), "Content-Type: application/json")


def measured(bundle: Path, names: list[str], seconds: float) -> bool:
    good = True
    with tempfile.TemporaryDirectory() as folder:
        process, port = start(bundle, Path(folder))
        asyncio.run(prepare(port))
        victim = Victim(port)
        victim.forecast(2)
        print(
            "| attack | p50, p99 quiet | p50, p99 during it | times quiet | refused or failed | memory | right |\n"
            "|---|---|---|---|---|---|---|"
        )
        before = victim.forecast(seconds)
        victim.quick_ms = 2 * percentiles(before)[0]
        for name in names:
            peak, attacker_process = Peak(process.pid), start_attacker(name, port)
            peak.start()
            time.sleep(3)
            took = victim.forecast(seconds)
            failed = victim.failed
            end(attacker_process)
            peak.going = False
            alive = process.poll() is None
            if alive:
                victim.settle()
            after = victim.forecast(seconds)
            quiet, during = percentiles(before + after), percentiles(took)
            before = after
            ratio = during[1] / quiet[1]
            right = alive and failed == 0 and ratio <= LIMIT_RATIO and peak.megabytes <= LIMIT_MB
            good &= right or name == CONTROL
            print(
                f"| {name} | {quiet[0]:.1f}, {quiet[1]:.1f} ms | {during[0]:.1f}, {during[1]:.1f} ms | {ratio:.2f} | {failed} | "
                f"{peak.megabytes:,.0f} MB | {'yes' if right else 'no'} |",
                flush=True,
            )
            if not alive:
                print((Path(folder) / "log").read_text()[-2000:])
                return False
        attacker_processes = [
            start_attacker(name, port) for name in ("idle-websockets", "sse-watchers", "slow-readers")
        ]
        time.sleep(4)
        began = time.monotonic()
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(60)
        stop_s = time.monotonic() - began
        stopped = process.poll() is not None
        good &= stopped and stop_s < 13
        print(
            f"\nA stop with idle WebSockets, watchers and slow readers: {stop_s:.1f} s"
            if stopped
            else "\nIt did not stop within 60 s"
        )
        for attacker_process in attacker_processes:
            end(attacker_process)
        if not stopped:
            end(process)
    return good


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("attacks", nargs="*", metavar="ATTACK", help=", ".join(ATTACKS))
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=10)
    args = parser.parse_args()
    if unknown := set(args.attacks) - set(ATTACKS):
        parser.error(f"attack: {unknown.pop()!r}; allowed: {', '.join(ATTACKS)}")
    if args.bundle is None:
        parser.error("--bundle: missing; a folder that m3tr-build train wrote")
    sys.exit(not measured(args.bundle, args.attacks or list(ATTACKS), args.seconds))


if __name__ == "__main__":
    main()
