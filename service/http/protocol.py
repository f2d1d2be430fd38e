"""HTTP/1.1 as clients really speak it, on top of uvicorn's own protocol.

connection -> room     over the limit, the connection that was silent longest is closed, or this one gets 503
bytes -> head          within ``head_deadline_s`` (408) and ``max_header_bytes`` (431); trailers are read and dropped
-> an offer      of another protocol than WebSocket is declined: the request is answered as it is (RFC 9110 7.8)
-> body          see ``service.http.bodies``; what comes after the answer is dropped, up to ``DISCARDED_BYTES``
answer -> bytes        a client that takes nothing of it for ``write_deadline_s`` is cut off
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from service.http.connections import Connections
from service.http.visit import CYCLE, GONE
from service.problems import HeadersTooLarge, Malformed, Overloaded, Problem, TooSlow

_UPGRADES: Final = frozenset((b"upgrade", b"http2-settings"))
"""Names that are left out of a head whose offer is declined, as headers and as options of Connection."""
DISCARDED_BYTES: Final = 2**20
"""A refused body up to this size is read and dropped, so that the connection stays; a larger one ends it."""
_CONTINUE: Final = b"HTTP/1.1 100 "
_FRAGMENTS: Final = 1024
"""Pieces that a message of a WebSocket may come in."""
_PARSED_BYTES: Final = 4096
"""Bytes that are parsed before it is looked whether a request waits for the one before it; then the rest waits unparsed."""


PARTIAL_BYTES: Final = 64 * 2**20
"""Bytes of messages that are not whole, over all WebSockets; past it, one that sends a long message is cut off."""
_FAIR_BYTES: Final = 64 * 1024
_LEFT: Final = getattr(select, "POLLRDHUP", select.POLLHUP)
"""What a socket says whose client sends nothing any more."""


@dataclass(frozen=True, slots=True)
class Line:
    """What a connection may take: bytes of a head, and seconds."""

    connections: Connections
    header_bytes: int
    head_deadline_s: float
    write_deadline_s: float
    message_deadline_s: float


class _Watched(asyncio.Protocol):
    """A connection whose client must go on reading: the timer runs from when the buffer is full to when it is not."""

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    line: Line
    _reading: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        super().pause_writing()
        self._must_read()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._has_read()

    def _must_read(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(self.line.write_deadline_s, self._cut)

    def _has_read(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _cut(self) -> None:
        self._reading = None
        self.transport.abort()


class _Answer:
    """What an answer is written to: its head goes out with the first of its body, which saves a system call."""

    __slots__ = ("_began", "_head", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self.is_closing = transport, transport.is_closing
        self._head, self._began = b"", False

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif not self._began and not data.startswith(_CONTINUE):
            self._head, self._began = data, True
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write a head that has no body."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        self.flush()
        self._transport.close()


class Protocol(_Watched, HttpToolsProtocol):
    """One connection."""

    def __init__(self, line: Line, **how: Any) -> None:
        HttpToolsProtocol.__init__(self, **how)
        self.line = line
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = True
        self._begun = False
        self._since_progress = 0
        self._discarded = 0
        self._counted = False
        self._unparsed = b""
        self._behind = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take it where there is room."""
        connections = self.line.connections
        if not connections.make_room():
            self.transport = transport
            self._refuse(Overloaded("too many connections", retry_after_s=5, kind="connections", reason="full"))
            return
        self._counted = True
        connections.open += 1
        connections.opened += 1
        connections.silent[transport] = None
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no longer."""
        self._stop_waiting()
        self._has_read()
        if self._counted:
            self._counted = False
            self.line.connections.open -= 1
            self.line.connections.silent.pop(self.transport, None)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came, as far as no request waits for the one before it, or for its answer to be read.

        Parsed, it takes many times its bytes.
        """
        if self._unparsed:
            self._unparsed += data
        else:
            self._take(data)

    def _take(self, data: bytes) -> None:
        for start in range(0, len(data), _PARSED_BYTES):
            if self.pipeline or self._behind:
                self._unparsed = data[start:]
                self.flow.pause_reading()
                return
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            self._parse(data[start : start + _PARSED_BYTES])

    def _parse(self, data: bytes) -> None:
        """Parse bytes; a declined offer is parsed on as a request without it."""
        silent = self.line.connections.silent
        if self.transport in silent:
            silent.move_to_end(self.transport)
        self._since_progress += len(data)
        while data:
            self._unset_keepalive_if_required()
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._should_upgrade():
                    self._become_a_socket()
                    return
                if self.scope["method"] != "CONNECT":
                    data = self._without_offer() + data[offer.args[0] :]
                    continue
                self._refuse(Malformed("this is no proxy", field="method", value="CONNECT"))
            except httptools.HttpParserError as error:
                refused = error.__context__
                self._refuse(refused if isinstance(refused, Problem) else Malformed("this is no HTTP request"))
            break
        if self.transport.is_closing() or self.parser is None:
            return
        if self._since_progress > self.line.header_bytes:
            # A head, a trailer or a chunk's extension without an end.
            self._refuse(self._too_large())
        elif self._in_head and self._deadline is None:
            self._await_head()

    def on_message_begin(self) -> None:
        """Begin a head."""
        self._in_head = self._begun = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header; a trailer is none."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head offers an upgrade: then it is not known yet how its body is to be read."""
        limit = self.line.header_bytes
        # What has come is no less than the head, and is all that most heads need to be measured by.
        if self._since_progress > limit and len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > limit:
            raise self._too_large()
        self._since_progress = self._discarded = 0
        if self.parser.should_upgrade():
            self.scope["method"] = self.parser.get_method().decode("ascii")
            return
        self._in_head = False
        self._stop_waiting()
        super().on_headers_complete()
        scope = cast(dict[str, Any], self.scope)
        scope[GONE], scope[CYCLE] = self._has_left, self.cycle
        answer = _Answer(self.transport)
        self.cycle.transport = cast(asyncio.Transport, answer)
        self.cycle.on_response = partial(self._answered, answer)

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body, or drop it where the answer is out already."""
        if self.parser.should_upgrade():
            return
        self._since_progress = 0
        if self.cycle.response_complete:
            self._discarded += len(body)
            if self._discarded > DISCARDED_BYTES:
                self.transport.abort()
            return
        super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body; the parser says so of every head with an offer as well."""
        if not self.parser.should_upgrade():
            self._since_progress, self._begun = 0, False
            self.line.connections.silent.pop(self.transport, None)
            super().on_message_complete()

    def _answered(self, answer: _Answer) -> None:
        answer.flush()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Go on with the next request, once the client has taken the answers before it."""
        if self.flow.write_paused and not self.transport.is_closing():
            self._behind = True
            return
        super().on_response_complete()
        if not self.transport.is_closing():
            if self._unparsed and not self.pipeline:
                unparsed, self._unparsed = self._unparsed, b""
                self._take(unparsed)
            if self._unparsed:
                self.flow.pause_reading()
            if not self.pipeline and self.cycle.response_complete:
                self.line.connections.silent[self.transport] = None
        elif self.transport.get_write_buffer_size():
            self._must_read()

    def resume_writing(self) -> None:
        """The client has read its answers: the next request goes on."""
        super().resume_writing()
        if self._behind:
            self._behind = False
            if not self.transport.is_closing():
                self.on_response_complete()

    def _has_left(self) -> bool:
        """Whether the client is gone. One that is not read from is asked for: its end would be noticed after all its bytes only."""
        if self.transport.is_closing():
            return True
        made = self.transport.get_extra_info("socket") if self.flow.read_paused else None
        if made is None:
            return False
        asked = select.poll()
        asked.register(made.fileno(), _LEFT)
        return bool(asked.poll(0))

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection without requests; what its client has not read by now, it does not read."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _should_upgrade(self) -> bool:
        # A WebSocket is opened by GET; what else offers one is a request that has a body to read.
        return self.scope["method"] == "GET" and super()._should_upgrade()

    def _become_a_socket(self) -> None:
        self._stop_waiting()
        self._has_read()
        self.line.connections.silent.pop(self.transport, None)
        # The new protocol counts it from here on.
        self._counted = False
        self.handle_websocket_upgrade()

    def _without_offer(self) -> bytes:
        """The head again, without what it offers, and a parser that has seen nothing yet."""
        version = self.parser.get_http_version().encode()
        head = [self.scope["method"].encode(), b" ", self.url, b" HTTP/", version, b"\r\n"]
        for name, value in self.headers:
            if name == b"connection":
                kept = [option for option in value.split(b",") if option.strip().lower() not in _UPGRADES]
                value = b",".join(kept)
            if name not in _UPGRADES and value:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join([*head, b"\r\n"])

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(self.line.head_deadline_s, self._too_late)

    def _stop_waiting(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _too_late(self) -> None:
        self._deadline = None
        if self._begun:
            self._refuse(TooSlow(f"the head did not arrive within {self.line.head_deadline_s:g} s", field="head"))
        else:
            # Nothing was asked.
            self.transport.close()

    def _too_large(self) -> HeadersTooLarge:
        limit = self.line.header_bytes
        return HeadersTooLarge(f"the head has more than {limit} bytes", allowed=f"at most {limit} bytes")

    def _refuse(self, problem: Problem) -> None:
        """Answer what never became a request, and close; an answer that is under way is cut instead."""
        self._stop_waiting()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = orjson.dumps(problem.body())
        headers = {"content-type": "application/problem+json", "content-length": str(len(body)), "connection": "close"}
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in {**problem.headers, **headers}.items())
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + body)
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._must_read()


class SocketProtocol(_Watched, WebSocketsSansIOProtocol):
    """One WebSocket. A message must be whole within ``message_deadline_s`` of its first bytes; what has come of it is counted."""

    def __init__(self, line: Line, **how: Any) -> None:
        WebSocketsSansIOProtocol.__init__(self, **how)
        self.line = line
        self._deadline: asyncio.TimerHandle | None = None
        self._begun = self._held = 0

    def connection_lost(self, exc: Exception | None) -> None:
        """Count it no longer; it was counted when it was made, as HTTP."""
        self._has_read()
        self._hold(0)
        self.line.connections.open -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came."""
        super().data_received(data)
        self._hold(self._begun + len(self.conn.reader.buffer))
        if self.line.connections.partial > PARTIAL_BYTES and self._held > _FAIR_BYTES:
            self.transport.abort()

    def handle_text(self, event: Frame) -> None:
        """Take a message, or begin one."""
        self._begun = len(event.data)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """Take a message, or begin one."""
        self._begun = len(event.data)
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """Add a piece to a message."""
        self._begun += len(event.data)
        if len(self.frames) >= _FRAGMENTS:
            self.transport.abort()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Hand a whole message on."""
        self._begun = 0
        self._hold(0)
        super().send_receive_event_to_app()

    def _hold(self, size: int) -> None:
        """``size`` bytes of a message have come that is not whole."""
        self.line.connections.partial += size - self._held
        self._held = size
        if not size and self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        elif size and self._deadline is None:
            self._deadline = self.loop.call_later(self.line.message_deadline_s, self._late)

    def _late(self) -> None:
        self._deadline = None
        if self.read_paused:
            # It is we who have not read.
            self._hold(self._held)
        else:
            self.transport.abort()


def protocols(line: Line) -> tuple[Callable[..., asyncio.Protocol], Callable[..., asyncio.Protocol]]:
    """Makers of HTTP connections and of WebSockets, as uvicorn's configuration takes them."""

    def http(**how: Any) -> Protocol:
        return Protocol(line, **how)

    def websocket(**how: Any) -> SocketProtocol:
        return SocketProtocol(line, **how)

    return http, websocket
