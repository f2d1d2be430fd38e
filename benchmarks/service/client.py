"""A light HTTP/1.1 client for load: sends ready-made requests and reads responses by their Content-Length."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import inf

import numpy as np


def request(method: str, path: str, body: object = None, host: str = "localhost") -> bytes:
    """One keep-alive request; ``body`` is sent as JSON."""
    content = b"" if body is None else json.dumps(body).encode()
    kind = "" if body is None else "Content-Type: application/json\r\n"
    head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\n{kind}Content-Length: {len(content)}\r\n\r\n"
    return head.encode() + content


@dataclass(frozen=True)
class ClosedLoopResult:
    """Result of a run: ``seconds`` (n,) latency of each response, number of 2xx responses, and duration of the run."""

    seconds: np.ndarray
    succeeded: int
    wall_s: float

    @property
    def rate(self) -> float:
        """2xx responses per second."""
        return self.succeeded / self.wall_s

    def ms(self, percent: float) -> float:
        """A percentile of latency in milliseconds."""
        return float(np.percentile(self.seconds, percent) * 1000)


class _Connection(asyncio.Protocol):
    def __init__(
        self, requests: Iterator[bytes], until: float, seconds: list[float], done: asyncio.Future[None]
    ) -> None:
        self.requests, self.until, self.seconds, self.done = requests, until, seconds, done
        self.succeeded = 0
        self.buffer = b""
        self.started = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.next()

    def next(self) -> None:
        self.started = time.perf_counter()
        wanted = next(self.requests, None) if self.started < self.until else None
        if wanted is None:
            self.transport.close()
            if not self.done.done():
                self.done.set_result(None)
            return
        self.transport.write(wanted)

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = self.buffer[:end].lower()
        at = head.find(b"content-length:")
        length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
        if len(self.buffer) < end + 4 + length:
            return
        self.seconds.append(time.perf_counter() - self.started)
        self.succeeded += self.buffer[9:10] == b"2"
        self.buffer = b""
        self.next()

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(error or ConnectionResetError("the server closed the connection"))


async def closed_loop(
    port: int, requests: Sequence[bytes], *, connections: int, seconds: float = inf
) -> ClosedLoopResult:
    """Each connection sends its next request as soon as it has the response, in its own random order, for ``seconds``.

    Without ``seconds`` each connection sends its share of the requests once.
    """
    loop = asyncio.get_running_loop()
    started = time.perf_counter()
    latencies: list[float] = []
    made = []
    for i in range(connections):
        done = loop.create_future()
        order = (
            iter(requests[i::connections])
            if seconds == inf
            else itertools.cycle(random.Random(i).sample(requests, len(requests)))
        )
        connection = _Connection(order, started + seconds, latencies, done)
        await loop.create_connection(lambda c=connection: c, "127.0.0.1", port)  # type: ignore[misc]
        made.append(connection)
    await asyncio.gather(*(c.done for c in made))
    return ClosedLoopResult(np.array(latencies), sum(c.succeeded for c in made), time.perf_counter() - started)
