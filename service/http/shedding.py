"""The outermost ASGI layer: what is too much is refused, unrouted and unread, for a small part of what an answer costs.

request -> its kind: reads, writes, bulk, or free (probes, metrics, the schema, models, streams with limits of their own)
        -> its gate: a place, a short wait, or 503 (429 where this client holds its share already)
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final, Literal

import orjson
from prometheus_client.core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.gate import Gate, Refusal
from service.lifecycle import Lifecycle
from service.metrics import Metrics, gauge
from service.problems import Overloaded, OverShare, Problem, Unavailable
from service.settings import Settings

Kind = Literal["reads", "writes", "bulk"]

BULK_BYTES: Final = 4096
"""A batch of rows larger than this, as sent, is bulk: who sends it wants throughput, and may wait for it."""
DISCARDED_BYTES: Final = 2**20
"""A refused body up to this size is read and dropped, so that the connection stays; a larger one ends it."""
_FREE: Final = (b"/health/", b"/metrics", b"/openapi.json", b"/docs", b"/models")
_ROWS: Final = frozenset((b"/events", b"/counters"))
_WRITES: Final = frozenset(("PUT", "DELETE"))
_UNKNOWN: Final = 2**63


def classify(scope: Scope) -> Kind | None:
    """The kind that a request is counted as, from its head alone; None is never refused.

    Paths are compared undecoded, so no video id can pass for another route.
    """
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    if path == b"/" or path.startswith(_FREE) or path.endswith(b"/forecast/stream"):
        return None
    if path in _ROWS:
        return "bulk" if _length(scope) > BULK_BYTES else "writes"
    return "writes" if scope["method"] in _WRITES else "reads"


class Refused:
    """A refusal, ready to send."""

    def __init__(self, problem: Problem) -> None:
        body = orjson.dumps(problem.body())
        headers = [
            (b"content-type", b"application/problem+json"),
            (b"content-length", str(len(body)).encode()),
            *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
        ]
        closing = [*headers, (b"connection", b"close")]
        self._keep: Message = {"type": "http.response.start", "status": problem.status, "headers": headers}
        self._close: Message = {"type": "http.response.start", "status": problem.status, "headers": closing}
        self._body: Message = {"type": "http.response.body", "body": body}

    async def __call__(self, send: Send, *, close: bool) -> None:
        """Answer; ``close`` ends the connection."""
        await send(self._close if close else self._keep)
        await send(self._body)


class Shedding:
    """Refuses what is too much, and tells clients of a stop."""

    def __init__(self, app: ASGIApp, settings: Settings, metrics: Metrics, lifecycle: Lifecycle) -> None:
        self._app = app
        self._lifecycle = lifecycle
        self._shared = settings.client_share < 1
        wait_s, share = settings.wait_ms / 1000, settings.client_share
        self.gates: dict[Kind, Gate] = {
            "reads": Gate(settings.reads_in_flight, settings.reads_waiting, wait_s, share),
            "writes": Gate(settings.writes_in_flight, settings.writes_waiting, wait_s, share),
            "bulk": Gate(settings.bulk_in_flight, settings.bulk_waiting, wait_s, share),
        }
        self._refused: dict[tuple[Kind, Refusal], Refused] = {}
        for kind in self.gates:
            for reason in ("full", "late"):
                problem = Overloaded("too many requests of this kind are under way", kind=kind, reason=reason)
                self._refused[kind, reason] = Refused(problem)
            problem = OverShare("this client has too many requests of this kind under way", kind=kind)
            self._refused[kind, "share"] = Refused(problem)
        self._stopped = Refused(Unavailable("the service stopped before this was done"))
        # Labels are bound once: a refusal must be cheap.
        self._counters = {key: metrics.shed.labels(*key) for key in self._refused}
        metrics.watch(self._readings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kind = classify(scope)
        if self._lifecycle.draining:
            send = _closing(send)
        if kind is None:
            await self._app(scope, receive, send)
            return
        gate, client = self.gates[kind], _client(scope) if self._shared else b""
        refusal = gate.refusal(client)
        if refusal is None and not await gate.enter(client):
            refusal = "late"
        if refusal is not None:
            self._counters[kind, refusal].inc()
            await self._refused[kind, refusal](send, close=_length(scope) > DISCARDED_BYTES)
            return
        try:
            await self._answer(scope, receive, send)
        finally:
            gate.leave(client)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        started = False

        async def watching(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive, watching)
        except asyncio.CancelledError:
            # The stop's patience is over. Without an answer the client could not tell whether to try again.
            if not self._lifecycle.draining or started:
                raise
            await self._stopped(send, close=True)

    def _readings(self) -> Sequence[Metric]:
        return [
            reading
            for kind, gate in self.gates.items()
            for reading in (
                gauge(f"m3tr_{kind}_in_flight_requests", "Requests that hold a place", gate.inside),
                gauge(f"m3tr_{kind}_waiting_requests", "Requests that wait for a place", gate.waiting),
            )
        ]


def _client(scope: Scope) -> bytes:
    """The API key as it was sent, or the address without one."""
    for name, value in scope["headers"]:
        if name in (b"authorization", b"x-api-key"):
            return bytes(value)
    return str((scope.get("client") or ("",))[0]).encode()


def _length(scope: Scope) -> int:
    """Bytes of the body that may still come; any number where the head does not say, or the client waits for a word."""
    length = 0
    for name, value in scope["headers"]:
        if name in (b"transfer-encoding", b"expect"):
            return _UNKNOWN
        if name == b"content-length":
            length = int(value) if value.isdigit() else _UNKNOWN
    return length


def _closing(send: Send) -> Send:
    """``send``, asking the client to take its next request to a new connection."""

    async def closing(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": [*message["headers"], (b"connection", b"close")]}
        await send(message)

    return closing
