"""Writes responses. A client that stops reading is disconnected. A response's head and body are written in one system call."""

from __future__ import annotations

import asyncio
from typing import Final

from service.http.connections import ConnectionLimits

_CONTINUE: Final = b"HTTP/1.1 100 "


class WriteDeadline(asyncio.Protocol):
    """A connection whose client must keep reading its responses.

    When the write buffer is full, the client must read so much within ``write_deadline_s`` that the buffer has space again.
    """

    transport: asyncio.Transport
    loop: asyncio.AbstractEventLoop
    limits: ConnectionLimits
    _write_timer: asyncio.TimerHandle | None = None

    def pause_writing(self) -> None:
        """Start the timer, because the write buffer is full."""
        super().pause_writing()
        self._start_write_timer()

    def resume_writing(self) -> None:
        """Stop the timer, because the write buffer has space again."""
        super().resume_writing()
        self._stop_write_timer()

    def _start_write_timer(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self.limits.write_deadline_s, self._abort)

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None

    def _abort(self) -> None:
        self._write_timer = None
        self.transport.abort()


class HeadBuffer:
    """A transport for one response. It sends the head together with the first chunk of the body, which saves a system call."""

    __slots__ = ("_head", "_started", "_transport", "is_closing")

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport, self.is_closing = transport, transport.is_closing
        self._head, self._started = b"", False

    def write(self, data: bytes) -> None:
        """Keep the head until more data comes, and write everything else immediately. An interim 100 response does not count as a head."""
        if self._head:
            data, self._head = self._head + data, b""
        elif not self._started and not data.startswith(_CONTINUE):
            self._head, self._started = data, True
            return
        self._transport.write(data)

    def flush(self) -> None:
        """Write the head if no body has followed it."""
        if self._head:
            self._transport.write(self._head)
            self._head = b""

    def close(self) -> None:
        """Write the head if no body has followed it, and close the transport."""
        self.flush()
        self._transport.close()
