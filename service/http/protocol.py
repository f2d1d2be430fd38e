"""HTTP/1.1 with limits and deadlines, on top of uvicorn's own protocol.

1. Connection: at the limit on connections, the connection that has been idle longest is closed to make room for the new one. If no
   connection is idle, the new one gets 503.
2. Head: the head must arrive within ``head_deadline_s``, or the response is 408. The head must have at most ``header_bytes`` bytes, or the
   response is 431. Trailers are dropped.
3. Upgrade offer: only WebSocket is accepted. Any other offer is ignored, and the request is answered without it (RFC 9110 7.8).
4. Body: see ``service.http.bodies``. Bytes that arrive after the response are dropped, up to ``DISCARDED_BYTES``.
5. Response: a client that reads nothing for ``write_deadline_s`` is disconnected.

In this module and in ``connections``, a connection is called silent while the server waits for a request on it.
"""

from __future__ import annotations

import asyncio
import select
from collections.abc import Callable
from functools import partial
from typing import Any, Final, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from service.http.connections import ConnectionLimits
from service.http.visit import CYCLE, GONE
from service.http.websocket_protocol import WebSocketProtocol
from service.http.writing import HeadBuffer, WriteDeadline
from service.problems import HeadersTooLarge, Malformed, Overloaded, Problem, TooSlow

DISCARDED_BYTES: Final = 2**20
"""Maximum size in bytes of a refused body that is read and dropped, so that the connection can stay open. If a refused body is larger,
the connection is closed."""
_UPGRADES: Final = frozenset((b"upgrade", b"http2-settings"))
"""If an upgrade offer is declined, headers with these names are removed from the head. Options with these names are removed from the
head's Connection header."""
_PARSED_BYTES: Final = 4096
"""Number of bytes that are parsed at once. If a request then waits for the previous request, further bytes stay unparsed."""
_CLOSED: Final = getattr(select, "POLLRDHUP", select.POLLHUP)
"""The poll event that reports that the client will send nothing more."""


class HttpProtocol(WriteDeadline, HttpToolsProtocol):
    """One HTTP connection. ``config`` contains the arguments of uvicorn's protocol."""

    def __init__(self, limits: ConnectionLimits, **config: Any) -> None:
        HttpToolsProtocol.__init__(self, **config)
        self.limits = limits
        self._head_timer: asyncio.TimerHandle | None = None
        self._in_head = True
        self._started = False
        """Whether a request has started to arrive and is not complete."""
        self._since_progress = 0
        self._discarded = 0
        self._counted = False
        self._unparsed = b""
        self._waits_for_reader = False
        """Whether the next request waits until the client has read the previous responses."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Accept the connection, or refuse it if the limit is reached."""
        connections = self.limits.connections
        if not connections.make_room():
            self.transport = transport
            self._refuse(Overloaded("too many connections", retry_after_s=5, kind="connections", reason="full"))
            return
        self._counted = True
        connections.open += 1
        connections.opened += 1
        connections.silent[transport] = None
        super().connection_made(transport)
        self._start_head_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the count of open connections."""
        self._stop_head_timer()
        self._stop_write_timer()
        if self._counted:
            self._counted = False
            self.limits.connections.open -= 1
            self.limits.connections.silent.pop(self.transport, None)
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that arrived, or keep them unparsed.

        The bytes are kept unparsed if a request waits for the previous request, or if the client has not read its responses yet.
        Parsed requests would take many times the memory.
        """
        if self._unparsed:
            self._unparsed += data
        else:
            self._parse_while_idle(data)

    def _parse_while_idle(self, data: bytes) -> None:
        for start in range(0, len(data), _PARSED_BYTES):
            if self.pipeline or self._waits_for_reader:
                self._unparsed = data[start:]
                self.flow.pause_reading()
                return
            if self.transport.is_closing() or self.transport.get_protocol() is not self:
                return
            self._parse(data[start : start + _PARSED_BYTES])

    def _parse(self, data: bytes) -> None:
        """Parse bytes. If a request's upgrade offer is declined, parse the request again without the offer."""
        silent = self.limits.connections.silent
        if self.transport in silent:
            silent.move_to_end(self.transport)
        self._since_progress += len(data)
        while data:
            self._unset_keepalive_if_required()
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._should_upgrade():
                    self._become_websocket()
                    return
                if self.scope["method"] != "CONNECT":
                    data = self._without_offer() + data[offer.args[0] :]
                    continue
                self._refuse(Malformed("this is not a proxy", field="method", value="CONNECT"))
            except httptools.HttpParserError as error:
                refused = error.__context__
                self._refuse(refused if isinstance(refused, Problem) else Malformed("this is not an HTTP request"))
            break
        if self.transport.is_closing() or self.parser is None:
            return
        if self._since_progress > self.limits.header_bytes:
            # The bytes belong to a head, a trailer or a chunk extension that does not end.
            self._refuse(self._head_too_large())
        elif self._in_head and self._head_timer is None:
            self._start_head_timer()

    def on_message_begin(self) -> None:
        """Begin a new request. The head comes first."""
        self._in_head = self._started = True
        super().on_message_begin()

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header. Drop a trailer."""
        if self._in_head:
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """Start the request. If its head offers an upgrade, do not start it yet, because the offer may be accepted or declined."""
        limit = self.limits.header_bytes
        # The head is not longer than the bytes that arrived. So the head is only measured if more bytes than the limit arrived.
        if self._since_progress > limit and len(self.url) + sum(len(n) + len(v) + 4 for n, v in self.headers) > limit:
            raise self._head_too_large()
        self._since_progress = self._discarded = 0
        if self.parser.should_upgrade():
            self.scope["method"] = self.parser.get_method().decode("ascii")
            return
        self._in_head = False
        self._stop_head_timer()
        super().on_headers_complete()
        scope = cast(dict[str, Any], self.scope)
        scope[GONE], scope[CYCLE] = self._has_left, self.cycle
        response = HeadBuffer(self.transport)
        self.cycle.transport = cast(asyncio.Transport, response)
        self.cycle.on_response = partial(self._responded, response)

    def on_body(self, body: bytes) -> None:
        """Keep a chunk of the body. Drop it if the response is already complete."""
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
        """End the body. The parser also calls this method after a head with an upgrade offer. Such a call is ignored."""
        if not self.parser.should_upgrade():
            self._since_progress, self._started = 0, False
            self.limits.connections.silent.pop(self.transport, None)
            super().on_message_complete()

    def _responded(self, response: HeadBuffer) -> None:
        response.flush()
        self.on_response_complete()

    def on_response_complete(self) -> None:
        """Continue with the next request. If the client has not read the previous responses, wait until it has read them."""
        if self.flow.write_paused and not self.transport.is_closing():
            self._waits_for_reader = True
            return
        super().on_response_complete()
        if not self.transport.is_closing():
            if self._unparsed and not self.pipeline:
                unparsed, self._unparsed = self._unparsed, b""
                self._parse_while_idle(unparsed)
            if self._unparsed:
                self.flow.pause_reading()
            if not self.pipeline and self.cycle.response_complete:
                self.limits.connections.silent[self.transport] = None
        elif self.transport.get_write_buffer_size():
            self._start_write_timer()

    def resume_writing(self) -> None:
        """Continue with the next request, because the client has read the previous responses."""
        super().resume_writing()
        if self._waits_for_reader:
            self._waits_for_reader = False
            if not self.transport.is_closing():
                self.on_response_complete()

    def _has_left(self) -> bool:
        """Return whether the client has closed the connection.

        While reading is paused, the kernel is asked. The event loop would only notice the close after it has read all earlier bytes.
        """
        if self.transport.is_closing():
            return True
        socket = self.transport.get_extra_info("socket") if self.flow.read_paused else None
        if socket is None:
            return False
        poll = select.poll()
        poll.register(socket.fileno(), _CLOSED)
        return bool(poll.poll(0))

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which no request came in time. Any response bytes that the client has not read are dropped."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        else:
            super().timeout_keep_alive_handler()

    def _should_upgrade(self) -> bool:
        # A WebSocket is opened with GET. If a request with a different method offers an upgrade, the request has a body to read.
        return self.scope["method"] == "GET" and super()._should_upgrade()

    def _become_websocket(self) -> None:
        self._stop_head_timer()
        self._stop_write_timer()
        self.limits.connections.silent.pop(self.transport, None)
        # The WebSocket protocol will remove the connection from the count.
        self._counted = False
        self.handle_websocket_upgrade()

    def _without_offer(self) -> bytes:
        """Return the head without its upgrade offer. Also replace the parser with a new one."""
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

    def _start_head_timer(self) -> None:
        self._head_timer = self.loop.call_later(self.limits.head_deadline_s, self._head_is_late)

    def _stop_head_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _head_is_late(self) -> None:
        self._head_timer = None
        if self._started:
            self._refuse(TooSlow(f"the head did not arrive within {self.limits.head_deadline_s:g} s", field="head"))
        else:
            # No request has started.
            self.transport.close()

    def _head_too_large(self) -> HeadersTooLarge:
        limit = self.limits.header_bytes
        return HeadersTooLarge(f"the head has more than {limit} bytes", allowed=f"at most {limit} bytes")

    def _refuse(self, problem: Problem) -> None:
        """Send an error for bytes that are not a valid request, and close the connection.

        If a response is under way, the connection is aborted instead.
        """
        self._stop_head_timer()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = orjson.dumps(problem.body())
        headers = {"content-type": "application/problem+json", "content-length": str(len(body)), "connection": "close"}
        lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in {**problem.headers, **headers}.items())
        self.transport.write(STATUS_LINE[problem.status] + lines + b"\r\n" + body)
        self.transport.close()
        if self.transport.get_write_buffer_size():
            self._start_write_timer()


def protocols(
    limits: ConnectionLimits,
) -> tuple[Callable[..., asyncio.Protocol], Callable[..., asyncio.Protocol]]:
    """Return the factories of HTTP and WebSocket connections that uvicorn's configuration needs."""
    return partial(HttpProtocol, limits), partial(WebSocketProtocol, limits)
