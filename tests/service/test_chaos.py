"""10,000 good, malformed, failing and early-disconnecting requests; afterwards a good one gets the right response."""

from __future__ import annotations

import gzip
import json
import random
import re
import socket
import struct
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.service.conftest import Starter
from tests.service.running import T0, Process, wait_until

pytestmark = pytest.mark.slow

SEED = 20_261_124
REQUESTS = 10_000
CLIENTS = 16
VIDEOS = [f"v{i}" for i in range(8)]
POISON = "poison"
TYPES = ("view", "like", "comment", "share")
Rows = list[dict[str, Any]]


def request(method: str, path: str, body: bytes = b"", kind: str = "application/json", extra: str = "") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


MALFORMED: list[bytes] = [
    request("POST", "/events", b'[{"video_id": "v0", '),
    request("POST", "/events", b"\xff\xfe"),
    request("POST", "/events", b"[]", kind="text/plain"),
    request("POST", "/events", gzip.compress(b"[]" * 500)[:-9], extra="Content-Encoding: gzip\r\n"),
    request("POST", "/events", json.dumps([{"video_id": "v0", "time": T0 + 5, "type": "view", "count": -1}]).encode()),
    request("POST", "/events", b'{"video_id": NaN}\nnot json\n', kind="application/x-ndjson"),
    request("POST", "/counters", b'[{"video_id": "v0", "time": "yesterday", "views": 1}]'),
    request("POST", "/predict", b'{"video": {}}'),
    request("POST", "/predict", b"[" * 100_000),
    request("PUT", "/videos/v0", b'{"published_at": 1}'),
    request("GET", "/videos/v0/forecast?horizons_s=-1"),
    request("GET", "/videos/%ff/forecast"),
    request("GET", "/videos/unknown"),
    request("GET", "/nowhere"),
    request("PATCH", "/events"),
    request("POST", "/events", extra="Content-Encoding: br\r\n"),
    b"POST /events HTTP/1.1\r\nHost: x\r\nContent-Length: 99999999999\r\nContent-Type: application/json\r\n\r\n",
    b"POST /events HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nContent-Type: application/json\r\n\r\nzz\r\n",
    b"GARBAGE\r\n\r\n",
    b"GET / HTTP/9.9\r\n\r\n",
]


class Client(threading.Thread):
    """One client of many; ``responses`` counts (kind of request, status), with status 0 if the connection ended."""

    def __init__(self, url: str, number: int, requests: int) -> None:
        super().__init__()
        where = httpx.URL(url)
        self._where = (where.host, where.port or 80)
        self._chance = random.Random(SEED + number)
        self._number, self._requests = number, requests
        self._line: socket.socket | None = None
        self.responses: Counter[tuple[str, int]] = Counter()
        self.rows: Rows = []
        self.uncertain: Rows = []
        self.error: BaseException | None = None

    def run(self) -> None:
        actions: list[tuple[Callable[[int], None], float]] = [
            (self._store, 4),
            (self._read, 3),
            (self._malformed, 3),
            (self._poison, 1),
            (self._leave, 2),
        ]
        try:
            for i in range(self._requests):
                self._chance.choices([a for a, _ in actions], [w for _, w in actions])[0](i)
        except BaseException as error:
            self.error = error
        finally:
            self._hang_up()

    def _batch(self, i: int) -> Rows:
        return [
            {
                "video_id": self._chance.choice(VIDEOS),
                "time": T0 + self._chance.randrange(100_000),
                "type": self._chance.choice(TYPES),
                "count": self._chance.randrange(1, 50),
                "id": f"{self._number}-{i}-{j}",
            }
            for j in range(self._chance.randrange(1, 6))
        ]

    def _store(self, i: int) -> None:
        batch = self._batch(i)
        self.rows += batch
        if self._ask("store", request("POST", "/events", json.dumps(batch).encode())) != 200:
            self.uncertain += batch

    def _read(self, i: int) -> None:
        video = self._chance.choice(VIDEOS)
        path = self._chance.choice((f"/videos/{video}", f"/videos/{video}/forecast", "/health/ready", "/metrics"))
        self._ask("read", request("GET", path))

    def _malformed(self, i: int) -> None:
        self._ask("malformed", self._chance.choice(MALFORMED))

    def _poison(self, i: int) -> None:
        self._ask("poison", request("GET", f"/videos/{POISON}/forecast"))

    def _leave(self, i: int) -> None:
        """Send part or all of a request, and disconnect without reading, with FIN or with RST."""
        batch = self._batch(i)
        self.rows += batch
        self.uncertain += batch
        whole = self._chance.choice(
            (
                request("POST", "/events", json.dumps(batch).encode()),
                request("GET", f"/videos/{self._chance.choice(VIDEOS)}/forecast"),
                request("GET", f"/videos/{self._chance.choice(VIDEOS)}/forecast/stream"),
            )
        )
        line = self._connected()
        line.sendall(whole[: self._chance.choice((len(whole), len(whole), self._chance.randrange(1, len(whole))))])
        if self._chance.random() < 0.5:
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._hang_up()

    def _ask(self, what: str, data: bytes) -> int:
        status = 0
        with suppress(ConnectionError):
            line = self._connected()
            line.sendall(data)
            status = self._answer(line)
        if status == 0:
            self._hang_up()
        self.responses[what, status] += 1
        return status

    def _answer(self, line: socket.socket) -> int:
        answer = b""
        while True:
            chunk = line.recv(65536)
            if not chunk:
                return 0
            answer += chunk
            head, found, body = answer.partition(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head.lower()) if found else None
            if length is not None and len(body) >= int(length[1]):
                if b"connection: close" in head.lower():
                    self._hang_up()
                return int(head[9:12])

    def _connected(self) -> socket.socket:
        if self._line is None:
            self._line = socket.create_connection(self._where, 20)
        return self._line

    def _hang_up(self) -> None:
        if self._line is not None:
            self._line.close()
            self._line = None


def start(fake_process: Starter, folder: Path) -> Process:
    process = fake_process(folder)
    for video in (*VIDEOS, POISON):
        httpx.put(f"{process.url}/videos/{video}", json={"published_at": T0, "title": video}).raise_for_status()
    return process


def resident_bytes(process: Process) -> int:
    status = Path(f"/proc/{process.popen.pid}/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) * 1024


def open_files(process: Process) -> int:
    return len(list(Path(f"/proc/{process.popen.pid}/fd").iterdir()))


def send(url: str, rows: Rows) -> None:
    for begin in range(0, len(rows), 1000):
        answer = httpx.post(f"{url}/events", json=rows[begin : begin + 1000], timeout=20)
        assert answer.status_code == 200 and answer.json()["rejected"] == 0, answer.text


def test_state_is_right_after_chaos(tmp_path: Path, fake_process: Starter) -> None:
    process = start(fake_process, tmp_path / "chaos")
    clients: list[Client] = []

    def unleash(requests: int) -> None:
        wave = [Client(process.url, len(clients) + i, requests // CLIENTS) for i in range(CLIENTS)]
        clients.extend(wave)
        for client in wave:
            client.start()
        for client in wave:
            client.join(120)
        assert [client.error for client in wave] == [None] * CLIENTS, f"seed {SEED}"

    unleash(REQUESTS // 5)
    files, memory = open_files(process), resident_bytes(process)
    unleash(REQUESTS - REQUESTS // 5)

    responses = sum((client.responses for client in clients), Counter())
    expected = {"store": (200, 503), "read": (200, 503), "malformed": range(400, 500), "poison": (500, 503)}
    odd = {
        key: n
        for key, n in responses.items()
        if key[1] not in expected[key[0]] and key not in (("malformed", 503), ("malformed", 0))
    }
    assert not odd, f"seed {SEED}: {responses}"
    assert (
        min(responses["store", 200], responses["read", 200], responses["poison", 500], responses["malformed", 422])
        > 100
    ), responses

    rows = [row for client in clients for row in client.rows]
    send(process.url, [row for client in clients for row in client.uncertain])
    fresh = start(fake_process, tmp_path / "fresh")
    send(fresh.url, rows)
    for video in VIDEOS:
        oracle = Counter[str]()
        for row in rows:
            if row["video_id"] == video:
                oracle[row["type"]] += row["count"]
        known = [httpx.get(f"{url}/videos/{video}").json() for url in (process.url, fresh.url)]
        assert known[0]["counts"] == dict(oracle), f"seed {SEED}"
        assert {**known[0], "version": 0} == {**known[1], "version": 0}
        asked = {"at": T0 + 200_000}
        forecasts = [httpx.get(f"{url}/videos/{video}/forecast", params=asked) for url in (process.url, fresh.url)]
        assert forecasts[0].status_code == 200 and forecasts[0].json() == forecasts[1].json(), f"seed {SEED}"

    # No slot, connection or memory is leaked.
    text = httpx.get(f"{process.url}/metrics").text
    for kind in ("reads", "writes", "bulk"):
        assert f"m3tr_{kind}_in_flight_requests 0.0" in text and f"m3tr_{kind}_waiting_requests 0.0" in text
    wait_until(lambda: open_files(process) <= files + 2)
    assert resident_bytes(process) - memory < 24 * 2**20
    assert process.stop() == 0 and fresh.stop() == 0
