"""Receives rows over a WebSocket. Each frame is answered, in the order of the frames.

    client                                  service
    {"seq": 1, "kind": "events", "rows"} ->
                                         <- {"ack": 1, "accepted": 2, "duplicate": 0, ...}   the rows are stored
                                         <- {"nack": 1, "retryable": true, "retry_after_s": 1, ...}   send the rows again
                                         <- {"error": {...problem...}, "seq": 1}   the connection is then closed

A frame is JSON in a text frame, or MessagePack in a binary frame. At most ``window`` frames may be
unanswered at a time. Further frames stay in the socket, so TCP slows down a client that is too fast (backpressure).
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, cast

import msgspec
import orjson
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from model.engagement.history import Mode
from service.fair_turns import Turns
from service.http.audit import Audit
from service.http.budget import Budget
from service.http.value_limit import UNCOUNTED_BYTES, check_values, count_values
from service.http.visit import Visit
from service.ingest import outcome_json
from service.ingest.handler import IngestHandler
from service.metrics import Metrics
from service.problems import Internal, Invalid, Malformed, OverShare, Problem, TooLarge, Unavailable
from service.strict_json import parse_json

log = structlog.get_logger(__name__)

RESTART: Final = 1012
_CLOSE_CODES: Final[Mapping[type[Problem], int]] = {Malformed: 1007, TooLarge: 1009, Internal: 1011}
_POLICY: Final = 1008
_SHORT_BYTES: Final = 256
_FRAME: Final = 'an object {"seq": whole number, "kind": "events" or "counters", "rows": [...]}'


_Answer = asyncio.Task[dict[str, Any]] | Problem | None
"""One of three: a task that computes the response to a frame; the reason why a frame could not be read; None at the end of the frames."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame with a batch of rows. ``seq`` is the number that the client gave to the frame.

    ``rows``: a list of parsed rows, or unparsed rows. Unparsed rows are MessagePack (Raw), or JSON (bytes) if there are many.
    """

    seq: int
    kind: Mode
    rows: list[Any] | msgspec.Raw | bytes


class _Parts(msgspec.Struct, forbid_unknown_fields=True):
    seq: msgspec.Raw
    kind: msgspec.Raw
    rows: msgspec.Raw


def parse_frame(message: Mapping[str, Any], limit: int, values: int = 250_000) -> Frame:
    """Parse the frame in a WebSocket message.

    Raises:
        TooLarge: if the message has more than ``limit`` bytes, or is JSON with more than ``values`` values.
        Malformed: if the message is not valid JSON or MessagePack.
        Invalid: if the message is not a frame.
    """
    text = message.get("text")
    raw: bytes = message["bytes"] if text is None else text.encode("utf-8", "surrogatepass")
    if len(raw) > limit:
        raise TooLarge(
            f"the frame has more than {limit} bytes",
            field="frame",
            value=f"{len(raw)} bytes",
            allowed=f"at most {limit} bytes",
        )
    rows: Any
    if text is not None:
        if len(raw) > UNCOUNTED_BYTES:
            check_values(count_values(raw), values)
        value = (len(raw) > UNCOUNTED_BYTES and _with_unparsed_rows(raw)) or parse_json(raw)
        if not isinstance(value, dict) or set(value) != {"seq", "kind", "rows"}:
            raise Invalid("frame", list(value) if isinstance(value, dict) else value, _FRAME)
        seq, kind, rows = value["seq"], value["kind"], value["rows"]
        if not isinstance(rows, list | bytes):
            raise Invalid("rows", type(rows).__name__, "a list of rows")
    else:
        try:
            parts = msgspec.msgpack.decode(raw, type=_Parts)
            seq, kind = (_short(part) for part in (parts.seq, parts.kind))
        except msgspec.ValidationError as error:
            raise Invalid("frame", str(error), _FRAME) from None
        except (msgspec.DecodeError, TypeError, ValueError, RecursionError) as error:
            raise Malformed(f"not valid MessagePack: {error}", field="frame") from None
        rows = parts.rows
    if type(seq) is not int or not 0 <= seq < 2**63:
        raise Invalid("seq", seq, "a whole number from 0 on")
    if kind not in ("events", "counters"):
        raise Invalid("kind", kind, "events or counters")
    return Frame(seq, cast(Mode, kind), rows)


def _with_unparsed_rows(raw: bytes) -> dict[str, Any] | None:
    """Parse a frame in JSON, but leave its rows as text. Return None if anything about the frame is unusual."""
    try:
        parts = msgspec.json.decode(raw, type=_Parts)
        seq, kind, rows = (bytes(part) for part in (parts.seq, parts.kind, parts.rows))
        if rows[:1] != b"[" or max(len(seq), len(kind)) > _SHORT_BYTES:
            return None
        return {"seq": msgspec.json.decode(seq), "kind": msgspec.json.decode(kind), "rows": rows}
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return None


def _short(part: msgspec.Raw) -> Any:
    raw = bytes(part)
    return msgspec.msgpack.decode(raw) if len(raw) <= _SHORT_BYTES else f"{len(raw)} bytes"


class RowSockets:
    """All WebSockets that send rows.

    ``connections``: maximum number of connections.
    ``share``: fraction of ``connections`` that one client may hold.
    ``budget``: limits the bytes of unanswered frames and of request bodies together.
    """

    def __init__(
        self,
        ingest: IngestHandler,
        budget: Budget,
        audit: Audit,
        metrics: Metrics,
        turns: Turns,
        *,
        window: int,
        frame_bytes: int,
        values: int,
        connections: int,
        share: float = 1,
    ) -> None:
        self._ingest, self._budget, self._audit, self._frames = ingest, budget, audit, metrics.frames
        self._turns = turns
        self._window, self._frame_bytes, self._values = window, frame_bytes, values
        self._limit, self._client_limit = connections, max(1, int(connections * share))
        self._by_client: Counter[bytes] = Counter()
        self._readers: set[asyncio.Task[None]] = set()
        self._served: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self.connections = 0
        """Number of open connections."""

    def check_room(self, client: bytes) -> None:
        """Raise Unavailable if all connections are taken. Raise OverShare if this client already holds its share."""
        if self._stopping:
            raise Unavailable("the service is stopping")
        if self.connections >= self._limit:
            raise Unavailable("too many connections", retry_after_s=5, part="stream", allowed=self._limit)
        if self._by_client[client] >= self._client_limit:
            raise OverShare(
                "this client has too many connections", retry_after_s=5, part="stream", allowed=self._client_limit
            )

    async def serve(self, socket: WebSocket, visit: Visit) -> None:
        """Answer the frames of an accepted connection until one side closes it."""
        self.connections += 1
        self._by_client[visit.client] += 1
        served = cast("asyncio.Task[Any]", asyncio.current_task())
        self._served.add(served)
        answers: asyncio.Queue[_Answer] = asyncio.Queue()
        window = asyncio.Semaphore(self._window)
        reader = asyncio.create_task(self._read(socket, visit, answers, window))
        self._readers.add(reader)
        try:
            await self._write(socket, answers, window)
        except WebSocketDisconnect:
            pass
        finally:
            reader.cancel()
            while not answers.empty():
                # The client has disconnected, but its rows are still being stored. Wait until they are stored.
                if isinstance(item := answers.get_nowait(), asyncio.Task):
                    await item
            self._readers.discard(reader)
            self._served.discard(served)
            self.connections -= 1
            self._by_client[visit.client] -= 1
            if not self._by_client[visit.client]:
                del self._by_client[visit.client]

    async def close(self) -> None:
        """Stop reading, answer the frames that were already read, and close every connection with code 1012."""
        self._stopping = True
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)

    async def _read(
        self,
        socket: WebSocket,
        visit: Visit,
        answers: asyncio.Queue[_Answer],
        window: asyncio.Semaphore,
    ) -> None:
        try:
            while True:
                await window.acquire()
                message = await socket.receive()
                if message["type"] != "websocket.receive":
                    return
                await self._turns.take(visit.client)
                try:
                    frame = parse_frame(message, self._frame_bytes, self._values)
                except Problem as problem:
                    answers.put_nowait(problem)
                    return
                size = len(message.get("text") or message.get("bytes") or b"")
                answers.put_nowait(asyncio.create_task(self._answer(frame, visit, size)))
                # The budget only counts a frame until it is answered, so the frame's memory must not be kept longer.
                del message, frame
        finally:
            answers.put_nowait(None)

    async def _answer(self, frame: Frame, visit: Visit, size: int) -> dict[str, Any]:
        answer = await self._take(frame, visit, size)
        kind = next(iter(answer))
        self._frames.labels(kind).inc()
        note = {"seq": frame.seq, "kind": frame.kind, "answer": kind, "accepted": answer.get("accepted", 0)}
        self._audit(visit, method="WS", route="/events/stream", **note)
        return answer

    async def _take(self, frame: Frame, visit: Visit, size: int) -> dict[str, Any]:
        try:
            self._budget.take(visit.client, size)
            try:
                if isinstance(frame.rows, msgspec.Raw):
                    outcome = await self._ingest.take_packed(frame.kind, frame.rows, visit.client)
                elif isinstance(frame.rows, bytes):
                    outcome = await self._ingest.take_json(frame.kind, frame.rows, visit.client)
                else:
                    outcome = await self._ingest.take(frame.kind, frame.rows, visit.client)
            finally:
                self._budget.give(visit.client, size)
        except Unavailable as problem:
            return {
                "nack": frame.seq,
                "retryable": True,
                "retry_after_s": int(problem.headers["Retry-After"]),
                "detail": problem.detail,
            }
        except Problem as problem:
            return {"error": problem.body(), "seq": frame.seq, "close": _code(problem)}
        except Exception:
            log.exception("handling a frame failed")
            fault = Internal("the service failed; its log has the reason")
            return {"error": fault.body(), "seq": frame.seq, "close": _code(fault)}
        return {"ack": frame.seq, **await outcome_json.long_outcome(outcome, self._turns, visit.client)}

    async def _write(
        self,
        socket: WebSocket,
        answers: asyncio.Queue[_Answer],
        window: asyncio.Semaphore,
    ) -> None:
        while (item := await answers.get()) is not None:
            if isinstance(item, Problem):
                self._frames.labels("error").inc()
                answer: dict[str, Any] = {"error": item.body(), "seq": None, "close": _code(item)}
            else:
                answer = await item
            code = answer.pop("close", None)
            await socket.send_text(orjson.dumps(answer).decode())
            if code is not None:
                await socket.close(code)
                return
            window.release()
        if self._stopping:
            await socket.close(RESTART, "the service is stopping")


def _code(problem: Problem) -> int:
    return _CLOSE_CODES.get(type(problem), _POLICY)
