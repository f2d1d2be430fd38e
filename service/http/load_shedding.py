"""The outermost ASGI layer: what is too much is refused, unrouted and unread, for a small part of what an answer costs.

request -> its visit: an id, the key it was sent with (or the address), what is held for it
        -> its turn: requests of one client go on one after the other, so that others' come in between
        -> its kind: reads, writes, bulk, or free (probes, metrics, the schema, models, streams with limits of their own)
        -> its gate: without room, 503 at once (429 where this client holds its share already)
        -> its body: bytes out of the budget for all bodies
        -> its gate: a place or a short wait, once the body is here; left before the answer is written
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Final, Literal
from urllib.parse import unquote_plus

import orjson
from prometheus_client.core import Metric
from starlette.types import ASGIApp, Message, Receive, Scope, Send

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
from service.turns import Turns

Kind = Literal["reads", "writes", "bulk"]

BULK_BYTES: Final = 4096
"""A batch of rows larger than this, as sent, is bulk: who sends it wants throughput, and may wait for it."""
_FREE: Final = (b"/health/", b"/metrics", b"/openapi.json", b"/docs", b"/redoc", b"/models")
_ROWS: Final = frozenset((b"/events", b"/counters"))
_WRITES: Final = frozenset(("PUT", "DELETE"))
_QUERY_KEY: Final = b"api_key"


def classify(scope: Scope, length: int | None = None) -> Kind | None:
    """The kind that a request is counted as, from its head alone; None is never refused. ``length``: see ``Visit``.

    Paths are compared undecoded, so no video id can pass for another route.
    """
    path: bytes = scope.get("raw_path") or scope["path"].encode()
    if path == b"/" or path.startswith(_FREE) or path.endswith(b"/forecast/stream"):
        return None
    if path in _ROWS:
        return "bulk" if (Visit(scope).length if length is None else length) > BULK_BYTES else "writes"
    return "writes" if scope["method"] in _WRITES else "reads"


class Refused:
    """A refusal, ready to send."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self._body = orjson.dumps(problem.body())[:-1]
        self._headers = [
            (b"content-type", b"application/problem+json"),
            *((name.lower().encode(), value.encode()) for name, value in problem.headers.items()),
        ]

    async def __call__(self, send: Send, visit: Visit, *, close: bool) -> None:
        """Answer; ``close`` ends the connection."""
        body = self._body + b',"request_id":"' + visit.request_id.encode() + b'"}'
        headers = [*self._headers, (b"content-length", b"%d" % len(body))]
        if close:
            headers.append((b"connection", b"close"))
        await send({"type": "http.response.start", "status": self.problem.status, "headers": headers})
        await send({"type": "http.response.body", "body": body})


class Shedding:
    """Refuses what is too much, and tells clients of a stop."""

    def __init__(
        self,
        app: ASGIApp,
        settings: LoadSettings,
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
        wait_s, share = settings.wait_ms / 1000, settings.client_share
        self.gates: dict[Kind, ConcurrencyLimit] = {
            "reads": ConcurrencyLimit(settings.reads_in_flight, settings.reads_waiting, wait_s, share),
            "writes": ConcurrencyLimit(settings.writes_in_flight, settings.writes_waiting, wait_s, share),
            "bulk": ConcurrencyLimit(settings.bulk_in_flight, settings.bulk_waiting, wait_s, share),
        }
        turns.others = self.gates["reads"].others
        self._refused: dict[tuple[Kind, Refusal], Refused] = {}
        for kind in self.gates:
            for reason in ("full", "late"):
                problem = Overloaded("too many requests of this kind are under way", kind=kind, reason=reason)
                self._refused[kind, reason] = Refused(problem)
            problem = OverShare("this client has too many requests of this kind under way", kind=kind)
            self._refused[kind, "share"] = Refused(problem)
        self._refusals = {kind: partial(self._refuse, kind) for kind in self.gates}
        self._stopped = Refused(Unavailable("the service stopped before this was done"))
        # Labels are bound once: a refusal must be cheap.
        self._counters = {key: metrics.shed.labels(*key) for key in self._refused}
        metrics.watch(self._readings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
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
        answering = _Answering(send, visit, self._lifecycle, self._turns)
        kind = classify(scope, visit.length)
        if self._hosts is not None:
            try:
                self._hosts.check(visit.host, visit.origin)
            except Problem as problem:
                await Refused(problem)(answering, visit, close=True)
                return
        if kind is None:
            visit.limit(None, self._budget, _never)
            try:
                await self._app(scope, receive, answering)
            finally:
                visit.close()
            return
        gate = self.gates[kind]
        visit.limit(gate, self._budget, self._refusals[kind])
        # A body is awaited first, and outside.
        if visit.length or not visit.enter_now():
            refusal = gate.refusal(visit.client)
            if refusal is not None:
                self._counters[kind, refusal].inc()
                await self._refused[kind, refusal](answering, visit, close=visit.length > DISCARDED_BYTES)
                return
        try:
            if not visit.length:
                await visit.enter()
            await self._app(scope, receive, answering)
        except Overloaded as problem:
            if answering.started:
                raise
            await Refused(problem)(answering, visit, close=False)
        except asyncio.CancelledError:
            # The stop's patience is over. Without an answer the client could not tell whether to try again.
            if not self._lifecycle.draining or answering.started:
                raise
            await self._stopped(answering, visit, close=True)
        finally:
            visit.close()

    def _strip(self, scope: Scope) -> None:
        """Take the prefix of a proxy off the path, where the proxy has not done so."""
        if self._prefix and scope["path"].startswith(self._prefix + "/"):
            scope["path"] = scope["path"][len(self._prefix) :]
            raw: bytes = scope.get("raw_path") or b""
            if raw.startswith(self._prefix.encode()):
                scope["raw_path"] = raw[len(self._prefix.encode()) :]

    def _identify(self, scope: Scope, visit: Visit) -> None:
        """Find the key; where a browser cannot set a header, it comes in the query, which nobody sees any more."""
        query: bytes = scope["query_string"]
        if _QUERY_KEY in query and scope["path"].endswith("/stream"):
            pairs = [part.partition(b"=") for part in query.split(b"&")]
            scope["query_string"] = b"&".join(b"".join(pair) for pair in pairs if pair[0] != _QUERY_KEY)
            for name, _, value in pairs:
                if name == _QUERY_KEY and visit.presented is None:
                    visit.presented = unquote_plus(value.decode("latin-1"))
        visit.key = self._keys.find(visit.presented)
        # A key that is not known is no client of its own: whoever makes some up has no more for it.
        visit.client = visit.key.name.encode() if visit.key else visit.address.encode()

    def _refuse(self, kind: Kind, refusal: Refusal) -> Problem:
        self._counters[kind, refusal].inc()
        return self._refused[kind, refusal].problem.copy()

    def _readings(self) -> Sequence[Metric]:
        return [
            reading
            for kind, gate in self.gates.items()
            for reading in (
                gauge(f"m3tr_{kind}_in_flight_requests", "Requests that hold a place", gate.inside),
                gauge(f"m3tr_{kind}_waiting_requests", "Requests that wait for a place", gate.waiting),
            )
        ] + [
            gauge("m3tr_body_held_bytes", "Bytes of request bodies in memory", self._budget.held),
            counter("m3tr_body_bytes", "Bytes of request bodies, unpacked", self._budget.taken),
        ]


class _Answering:
    """``send``, with the request's id, in its client's turn; a place is given back before that, and the client's line, is waited for.

    Of a service that stops, each answer is the last of its connection.
    """

    __slots__ = ("_lifecycle", "_send", "_turns", "_visit", "started")

    def __init__(self, send: Send, visit: Visit, lifecycle: Lifecycle, turns: Turns) -> None:
        self._send, self._visit, self._lifecycle, self._turns = send, visit, lifecycle, turns
        self.started = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._visit.leave()
            # Many may have waited for the store or the model, and go on together.
            if not self._turns.free(self._visit.client):
                await self._turns.wait(self._visit.client)
            headers = [*message["headers"], (b"x-request-id", self._visit.request_id.encode())]
            if self._lifecycle.draining:
                headers.append((b"connection", b"close"))
            message = {**message, "headers": headers}
        await self._send(message)


def _never(refusal: Refusal) -> Problem:
    raise AssertionError(refusal)
