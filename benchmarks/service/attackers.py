"""The attacking client of ``benchmarks.service.attacks``, a process of its own.

    python -m benchmarks.service.attackers NAME PORT

Keeps one attack going until it is killed; prints a line when it starts.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import os
import socket
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Final

API_KEY: Final = "key-of-the-attacker"
PORT = 0


def head(method: str, path: str, *more: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Authorization: Bearer {API_KEY}", *more]
    return "\r\n".join([*lines, "", ""]).encode()


async def connect() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", PORT, limit=4096)


async def post(path: str, body: bytes, *more: str) -> None:
    reader, writer = await connect()
    writer.write(head("POST", path, f"Content-Length: {len(body)}", *more) + body)
    await writer.drain()
    await reader.read(200)
    writer.close()


async def burn() -> None:
    """No attack: uses as much CPU as the attackers do, but does not touch the service."""
    while True:
        sum(range(10_000))


async def endless_header() -> None:
    _, writer = await connect()
    writer.write(b"GET /health/live HTTP/1.1\r\n")
    while True:
        writer.write(b"X-Filler: " + b"a" * 4000 + b"\r\n")
        await writer.drain()


async def idle_socket() -> None:
    reader, _ = await connect()
    await reader.read(1)


async def slow_sender() -> None:
    _, writer = await connect()
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
    reader, writer = await connect()
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
    reader, writer = await connect()
    writer.write(head("GET", "/videos/v0/forecast/stream?horizons_s=3600", "Accept: text/event-stream"))
    while await reader.read(65536):
        pass


async def websocket() -> None:
    reader, writer = await connect()
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
PREPARED: Final[dict[str, Sequence[Callable[[], bytes]]]] = {
    "gzip-bombs": (zeros, refused_rows),
    "unknown-keys": (many_keys,),
}
"""Bodies that take long to make; they are made before the attack starts."""


async def attack(name: str) -> None:
    """Keep the attack going until the process is killed."""
    number, one = ATTACKS[name]

    async def repeat() -> None:
        while True:
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                await one()
            await asyncio.sleep(0.2)

    await asyncio.gather(*(repeat() for _ in range(number)))


def main() -> None:
    global PORT
    name, PORT = sys.argv[1], int(sys.argv[2])
    for make in PREPARED.get(name, ()):
        make()
    print("started", flush=True)
    asyncio.run(attack(name))


if __name__ == "__main__":
    main()
