"""WebSockets with deadlines and limits, on top of uvicorn's own protocol."""

from __future__ import annotations

import asyncio
from typing import Any, Final

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import Frame

from service.http.connections import ConnectionLimits
from service.http.writing import WriteDeadline

PARTIAL_BYTES: Final = 64 * 2**20
"""Maximum number of bytes of incomplete messages, over all WebSockets. Beyond this maximum, WebSockets with a long incomplete
message are disconnected."""
_LONG_BYTES: Final = 64 * 1024
_FRAGMENTS: Final = 1024
"""Maximum number of fragments of one message."""


class WebSocketProtocol(WriteDeadline, WebSocketsSansIOProtocol):
    """One WebSocket. ``config`` contains the arguments of uvicorn's protocol.

    A message must be complete within ``message_deadline_s`` after its first byte. The bytes of incomplete messages are limited.
    """

    def __init__(self, limits: ConnectionLimits, **config: Any) -> None:
        WebSocketsSansIOProtocol.__init__(self, **config)
        self.limits = limits
        self._message_timer: asyncio.TimerHandle | None = None
        self._fragment_bytes = 0
        """Number of bytes in the complete fragments of the incomplete message."""
        self._partial = 0
        """Number of all bytes of the incomplete message so far, including unparsed bytes."""

    def connection_lost(self, exc: Exception | None) -> None:
        """Remove the connection from the count of open connections. It was added when it began as an HTTP connection."""
        self._stop_write_timer()
        self._set_partial(0)
        self.limits.connections.open -= 1
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse the bytes that arrived."""
        super().data_received(data)
        self._set_partial(self._fragment_bytes + len(self.conn.reader.buffer))
        if self.limits.connections.partial > PARTIAL_BYTES and self._partial > _LONG_BYTES:
            self.transport.abort()

    def handle_text(self, event: Frame) -> None:
        """Handle a text message, or its first fragment."""
        self._fragment_bytes = len(event.data)
        super().handle_text(event)

    def handle_bytes(self, event: Frame) -> None:
        """Handle a binary message, or its first fragment."""
        self._fragment_bytes = len(event.data)
        super().handle_bytes(event)

    def handle_cont(self, event: Frame) -> None:
        """Add a fragment to the incomplete message."""
        self._fragment_bytes += len(event.data)
        if len(self.frames) >= _FRAGMENTS:
            self.transport.abort()
            return
        super().handle_cont(event)

    def send_receive_event_to_app(self) -> None:
        """Pass a complete message to the application."""
        self._fragment_bytes = 0
        self._set_partial(0)
        super().send_receive_event_to_app()

    def _set_partial(self, size: int) -> None:
        """Record that ``size`` bytes of an incomplete message have arrived. With 0, record that no message is incomplete."""
        self.limits.connections.partial += size - self._partial
        self._partial = size
        if not size and self._message_timer is not None:
            self._message_timer.cancel()
            self._message_timer = None
        elif size and self._message_timer is None:
            self._message_timer = self.loop.call_later(self.limits.message_deadline_s, self._message_is_late)

    def _message_is_late(self) -> None:
        self._message_timer = None
        if self.read_paused:
            # The client is not at fault, because this service has paused reading. Start the timer again.
            self._set_partial(self._partial)
        else:
            self.transport.abort()
