"""Load shedding, the outermost ASGI layer. Excess requests are refused before routing and before the body is read, at little cost.

Each request passes these steps:

1. Visit: the request's id and its client are determined. The client is an API key, or an address.
2. Turn: the request waits for its client's turn on the event loop. Turns of different clients alternate.
3. Kind: the request is classified as reads, writes or bulk. Health probes and requests for metrics, the OpenAPI schema, models and
   streams have no kind. Requests without a kind skip steps 4 and 6. Streams have limits of their own.
4. Early refusal: if all running and waiting slots of the kind are taken, the request gets 503. If the request's client already
   holds its share of the slots, the request gets 429.
5. Body: the body's bytes count toward the budget for all bodies.
6. Slot: after the body has arrived, the request takes a slot of its kind, or waits for one for a short time. The request releases
   the slot before the response is written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Final, Literal
from urllib.parse import unquote_plus

import orjson
from prometheus_client.core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.fair_turns import Turns
from service.http.auth import Keys
from service.http.budget import Budget
from service.http.concurrency import ConcurrencyLimit, Refusal
from service.http.hosts import Hosts
from service.http.protocol import DISCARDED_BYTES
from service.http.visit import REQUEST_ID, Visit
from service.lifecycle import Lifecycle
from service.metrics import Metrics, counter, gauge
from service.problems import Overloaded, OverShare, Problem, Unavailable
from service.settings import LoadSettings

Kind = Literal["reads", "writes", "bulk"]

BULK_BYTES: Final = 4096
"""Maximum size in bytes, as sent, of a batch of rows of kind writes. A larger batch is of kind bulk. Its sender needs throughput
and can wait."""
_FREE: Final = (b"/health/", b"/metrics", b"/openapi.json", b"/docs", b"/redoc", b"/models")
_ROWS: Final = frozenset((b"/events", b"/counters"))
_WRITES: Final = frozenset(("PUT", "DELETE"))
_QUERY_KEY: Final = b"api_key"


def classify(scope: Scope, length: int | None = None) -> Kind | None:
    """Return the kind of a request, or None if the request is never refused because of load.

    The kind only depends on the request's head. ``length``: the length of the body, as in ``Visit``. Paths are compared without decoding
    them, so no video id can look like a different route.
    """
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    if path == b"/" or path.startswith(_FREE) or path.endswith(b"/forecast/stream"):
        return None
    if path in _ROWS:
        return "bulk" if (Visit(scope).length if length is None else length) > BULK_BYTES else "writes"
    return "writes" if scope["method"] in _WRITES else "reads"


def concurrency_limits(settings: LoadSettings) -> dict[Kind, ConcurrencyLimit]:
    """Return the concurrency limit for each kind of request."""
    wait_s, share = settings.wait_ms / 1000, settings.client_share
    return {
        "reads": ConcurrencyLimit(settings.reads_in_flight, settings.reads_waiting, wait_s, share),
        "writes": ConcurrencyLimit(settings.writes_in_flight, settings.writes_waiting, wait_s, share),
        "bulk": ConcurrencyLimit(settings.bulk_in_flight, settings.bulk_waiting, wait_s, share),
    }


def load_readings(limits: Mapping[Kind, ConcurrencyLimit], budget: Budget) -> Sequence[Metric]:
    """Return the metrics for Prometheus of requests in flight and of bodies in memory."""
    return [
        reading
        for kind, limit in limits.items()
        for reading in (
            gauge(f"m3tr_{kind}_in_flight_requests", "Number of requests that hold a slot", limit.running),
            gauge(f"m3tr_{kind}_waiting_requests", "Number of requests that wait for a slot", limit.waiting),
        )
    ] + [
        gauge("m3tr_body_held_bytes", "Bytes of request bodies in memory", budget.held),
        counter("m3tr_body_bytes", "Bytes of request bodies after decompression", budget.taken),
    ]


class Refused:
    """An error response that is encoded once and sent many times."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._body = orjson.dumps(problem.body())[:-1]
        self._headers = [
            (b"content-type", b"application/problem+json"),
            *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
        ]

    async def __call__(self, send: Send, visit: Visit, *, close: bool) -> None:
        """Send the response. If ``close`` is True, tell the client that the connection will be closed."""
        body = self._body + b',"request_id":"' + visit.request_id.encode() + b'"}'
        headers = [*self._headers, (b"content-length", b"%d" % len(body))]
        if close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Shedding:
    """Refuses excess requests, and answers the requests that a stop of the service interrupts."""

    def __init__(
        self,
        app: ASGIApp,
        limits: Mapping[Kind, ConcurrencyLimit],
        metrics: Metrics,
        lifecycle: Lifecycle,
        keys: Keys,
        hosts: Hosts | None,
        budget: Budget,
        turns: Turns,
        prefix: str,
    ) -> None:
        self._app = app
        self._lifecycle, self._keys, self._hosts, self._budget = lifecycle, keys, hosts, budget
        self._turns = turns
        self._prefix = prefix
        self.limits = limits
        self._refused: dict[tuple[Kind, Refusal], Refused] = {}
        for kind in self.limits:
            for reason in ("full", "late"):
                problem = Overloaded("too many requests of this kind are under way", kind=kind, reason=reason)
                self._refused[kind, reason] = Refused(problem)
            problem = OverShare("this client has too many requests of this kind under way", kind=kind)
            self._refused[kind, "share"] = Refused(problem)
        self._refusals = {kind: partial(self._refuse, kind) for kind in self.limits}
        self._stopped = Refused(Unavailable("the service stopped before this request was done"))
        # The metrics' counters are looked up by their labels only once, because a refusal must be cheap.
        self._counters = {key: metrics.shed.labels(*key) for key in self._refused}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection: a request, a WebSocket or the lifespan."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        self._strip(scope)
        visit = scope["m3tr"] = Visit(scope)
        REQUEST_ID.set(visit.request_id)
        self._identify(scope, visit)
        if not self._turns.free(visit.client):
            await self._turns.wait(visit.client)
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
            return
        responder = _Responder(send, visit, self._lifecycle, self._turns)
        kind = classify(scope, visit.length)
        if self._hosts is not None:
            try:
                self._hosts.check(visit.host, visit.origin)
            except Problem as problem:
                await Refused(problem)(responder, visit, close=True)
                return
        if kind is None:
            visit.set_limits(None, self._budget, _never)
            try:
                await self._app(scope, receive, responder)
            finally:
                visit.close()
            return
        limit = self.limits[kind]
        visit.set_limits(limit, self._budget, self._refusals[kind])
        # A request with a body takes its slot only after the body has arrived.
        if visit.length or not visit.enter_now():
            refusal = limit.refusal(visit.client)
            if refusal is not None:
                self._counters[kind, refusal].inc()
                await self._refused[kind, refusal](responder, visit, close=visit.length > DISCARDED_BYTES)
                return
        try:
            if not visit.length:
                await visit.enter()
            await self._app(scope, receive, responder)
        except Overloaded as problem:
            if responder.started:
                raise
            await Refused(problem)(responder, visit, close=False)
        except asyncio.CancelledError:
            # The service is stopping now. Without a response, the client would not know whether to retry.
            if not self._lifecycle.draining or responder.started:
                raise
            await self._stopped(responder, visit, close=True)
        finally:
            visit.close()

    def _strip(self, scope: Scope) -> None:
        """Remove a proxy's prefix from the path, if the proxy has not removed it."""
        if self._prefix and scope["path"].startswith(self._prefix + "/"):
            scope["path"] = scope["path"][len(self._prefix) :]
            raw: bytes = scope.get("raw_path") or b""
            if raw.startswith(self._prefix.encode()):
                scope["raw_path"] = raw[len(self._prefix.encode()) :]

    def _identify(self, scope: Scope, visit: Visit) -> None:
        """Find the request's API key and set its client.

        Browsers cannot set a header for a stream, so a stream's key may be in the query. The key is then removed from the query.
        """
        query: bytes = scope["query_string"]
        if _QUERY_KEY in query and scope["path"].endswith("/stream"):
            pairs = [part.partition(b"=") for part in query.split(b"&")]
            scope["query_string"] = b"&".join(b"".join(pair) for pair in pairs if pair[0] != _QUERY_KEY)
            for name, _, value in pairs:
                if name == _QUERY_KEY and visit.presented is None:
                    visit.presented = unquote_plus(value.decode("latin-1"))
        visit.key = self._keys.find(visit.presented)
        # If the key is unknown, the client is the address. So nobody gets further shares by inventing keys.
        visit.client = visit.key.name.encode() if visit.key else visit.address.encode()

    def _refuse(self, kind: Kind, refusal: Refusal) -> Problem:
        self._counters[kind, refusal].inc()
        return self._refused[kind, refusal].problem.copy()


class _Responder:
    """An ASGI ``send`` that adds the request's id to the response, and waits for the client's turn before it sends the head.

    The concurrency slot is released before that wait. While the service is stopping, each response is the last one on its
    connection.
    """

    __slots__ = ("_lifecycle", "_send", "_turns", "_visit", "started")

    def __init__(self, send: Send, visit: Visit, lifecycle: Lifecycle, turns: Turns) -> None:
        self._send, self._visit, self._lifecycle, self._turns = send, visit, lifecycle, turns
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._visit.leave()
            # Many requests may have waited for the store or the model, and may now continue at the same time.
            if not self._turns.free(self._visit.client):
                await self._turns.wait(self._visit.client)
            headers = [*message["headers"], (b"x-request-id", self._visit.request_id.encode())]
            if self._lifecycle.draining:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)


def _never(refusal: Refusal) -> Problem:
    raise AssertionError(refusal)
