"""Rows over a WebSocket: frames in, acknowledgements out, in the order the frames came.

    client                                  service
    {"seq": 1, "kind": "events", "rows"} ->
                                         <- {"ack": 1, "accepted": 2, "duplicate": 0, ...}   the store has them
                                         <- {"nack": 1, "retryable": true, "retry_after_s": 1, ...}   send them again
                                         <- {"error": {...problem...}, "seq": 1}   and the connection is closed

A frame is JSON text, or MessagePack in a binary frame. At most ``window`` frames are read and not answered yet; the next
one is left in the socket, so a client that is too fast is slowed down by TCP.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import msgspec
import orjson
import structlog
from starlette.websockets import WebSocket, WebSocketDisconnect

from model.history import Mode
from service.http import answers
from service.http.bodies import parse_json
from service.problems import Internal, Invalid, Malformed, Problem, TooLarge, Unavailable
from service.store.row import Outcome

log = structlog.get_logger(__name__)

RESTART: Final = 1012
_CLOSE_CODES: Final[Mapping[type[Problem], int]] = {Malformed: 1007, TooLarge: 1009, Internal: 1011}
_POLICY: Final = 1008
_FRAME: Final = 'an object {"seq": whole number, "kind": "events" or "counters", "rows": [...]}'


_Item = asyncio.Task[dict[str, Any]] | Problem | None
"""An answer to come, a frame that could not be read, or the end."""


class Take(Protocol):
    """The door that rows go through."""

    async def __call__(self, kind: Mode, items: list[Any]) -> Outcome:
        """Store rows and say what became of each."""


@dataclass(frozen=True, slots=True)
class Frame:
    """One batch; ``seq`` is the client's name for it."""

    seq: int
    kind: Mode
    rows: list[Any]


def parse_frame(message: Mapping[str, Any], limit: int) -> Frame:
    """A frame out of a WebSocket message of at most ``limit`` bytes."""
    text = message.get("text")
    raw: bytes = message["bytes"] if text is None else text.encode("utf-8", "surrogatepass")
    if len(raw) > limit:
        raise TooLarge(
            f"the frame has more than {limit} bytes",
            field="frame",
            value=f"{len(raw)} bytes",
            allowed=f"at most {limit} bytes",
        )
    if text is not None:
        value = parse_json(raw)
    else:
        try:
            value = msgspec.msgpack.decode(raw)
        except (msgspec.DecodeError, TypeError, RecursionError) as error:
            raise Malformed(f"no valid MessagePack: {error}", field="frame") from None
    if not isinstance(value, dict) or set(value) != {"seq", "kind", "rows"}:
        raise Invalid("frame", list(value) if isinstance(value, dict) else value, _FRAME)
    if type(value["seq"]) is not int or not 0 <= value["seq"] < 2**63:
        raise Invalid("seq", value["seq"], "a whole number from 0 on")
    if value["kind"] not in ("events", "counters"):
        raise Invalid("kind", value["kind"], "events or counters")
    if not isinstance(value["rows"], list):
        raise Invalid("rows", type(value["rows"]).__name__, "a list of rows")
    return Frame(value["seq"], cast(Mode, value["kind"]), value["rows"])


class Producers:
    """Every WebSocket that brings rows."""

    def __init__(self, take: Take, *, window: int, frame_bytes: int, connections: int) -> None:
        self._take = take
        self._window, self._frame_bytes, self._most = window, frame_bytes, connections
        self._readers: set[asyncio.Task[None]] = set()
        self._served: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self.connections = 0
        """Connections that are open now."""

    def check_room(self) -> None:
        """Raise Unavailable when no further connection is taken."""
        if self._stopping:
            raise Unavailable("the service is stopping")
        if self.connections >= self._most:
            raise Unavailable("too many connections", retry_after_s=5, part="stream", allowed=self._most)

    async def serve(self, socket: WebSocket) -> None:
        """Answer an accepted connection until one of the two sides closes it."""
        self.connections += 1
        served = cast("asyncio.Task[Any]", asyncio.current_task())
        self._served.add(served)
        answered: asyncio.Queue[_Item] = asyncio.Queue()
        window = asyncio.Semaphore(self._window)
        reader = asyncio.create_task(self._read(socket, answered, window))
        self._readers.add(reader)
        try:
            await self._write(socket, answered, window)
        except WebSocketDisconnect:
            pass
        finally:
            reader.cancel()
            while not answered.empty():
                # Its client has gone, and its rows are on their way.
                if isinstance(item := answered.get_nowait(), asyncio.Task):
                    await item
            self._readers.discard(reader)
            self._served.discard(served)
            self.connections -= 1

    async def close(self) -> None:
        """Read nothing more, answer what was read, and close every connection with 1012."""
        self._stopping = True
        for reader in self._readers:
            reader.cancel()
        await asyncio.gather(*self._served, return_exceptions=True)

    async def _read(
        self,
        socket: WebSocket,
        answered: asyncio.Queue[_Item],
        window: asyncio.Semaphore,
    ) -> None:
        try:
            while True:
                await window.acquire()
                message = await socket.receive()
                if message["type"] != "websocket.receive":
                    return
                try:
                    frame = parse_frame(message, self._frame_bytes)
                except Problem as problem:
                    answered.put_nowait(problem)
                    return
                answered.put_nowait(asyncio.create_task(self._answer(frame)))
        finally:
            answered.put_nowait(None)

    async def _answer(self, frame: Frame) -> dict[str, Any]:
        try:
            outcome = await self._take(frame.kind, frame.rows)
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
            log.exception("a frame failed")
            fault = Internal("the service failed; its log has the reason")
            return {"error": fault.body(), "seq": frame.seq, "close": _code(fault)}
        return {"ack": frame.seq, **answers.outcome(outcome)}

    async def _write(
        self,
        socket: WebSocket,
        answered: asyncio.Queue[_Item],
        window: asyncio.Semaphore,
    ) -> None:
        while (item := await answered.get()) is not None:
            if isinstance(item, Problem):
                told: dict[str, Any] = {"error": item.body(), "seq": None, "close": _code(item)}
            else:
                told = await item
            code = told.pop("close", None)
            await socket.send_text(orjson.dumps(told).decode())
            if code is not None:
                await socket.close(code)
                return
            window.release()
        if self._stopping:
            await socket.close(RESTART, "the service is stopping")


def _code(problem: Problem) -> int:
    return _CLOSE_CODES.get(type(problem), _POLICY)
