"""HTTP/1.1 as clients really speak it, on top of uvicorn's own protocol.

bytes -> head  an offer of another protocol than WebSocket is declined: the request is answered as it is (RFC 9110 7.8)
"""

from __future__ import annotations

from typing import Final

import httptools
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_UPGRADES: Final = frozenset((b"upgrade", b"http2-settings"))
"""Names that are left out of a head whose offer is declined, as headers and as options of Connection."""


class Protocol(HttpToolsProtocol):
    """One connection."""

    def data_received(self, data: bytes) -> None:
        """Parse what came; a declined offer is parsed on as a request without it."""
        while data:
            self._unset_keepalive_if_required()
            try:
                self.parser.feed_data(data)
            except httptools.HttpParserUpgrade as offer:
                if self._should_upgrade():
                    self.handle_websocket_upgrade()
                    return
                if self.scope["method"] != "CONNECT":
                    data = self._without_offer() + data[offer.args[0] :]
                    continue
                self.send_400_response("This is no proxy.")
            except httptools.HttpParserError:
                self.send_400_response("Invalid HTTP request received.")
            return

    def on_headers_complete(self) -> None:
        """Begin the request, unless its head offers an upgrade: then it is not known yet how its body is to be read."""
        if not self.parser.should_upgrade():
            super().on_headers_complete()
            return
        self.scope["method"] = self.parser.get_method().decode("ascii")

    def on_body(self, body: bytes) -> None:
        """Keep a piece of the body."""
        if not self.parser.should_upgrade():
            super().on_body(body)

    def on_message_complete(self) -> None:
        """End the body; the parser says so of every head with an offer as well."""
        if not self.parser.should_upgrade():
            super().on_message_complete()

    def _should_upgrade(self) -> bool:
        # A WebSocket is opened by GET; what else offers one is a request that has a body to read.
        return self.scope["method"] == "GET" and super()._should_upgrade()

    def _without_offer(self) -> bytes:
        """The head again, without what it offers, and a parser that has seen nothing yet."""
        head = [
            self.scope["method"].encode(),
            b" ",
            self.url,
            b" HTTP/",
            self.parser.get_http_version().encode(),
            b"\r\n",
        ]
        for name, value in self.headers:
            if name == b"connection":
                kept = [option for option in value.split(b",") if option.strip().lower() not in _UPGRADES]
                value = b",".join(kept)
            if name not in _UPGRADES and value:
                head += [name, b": ", value, b"\r\n"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return b"".join([*head, b"\r\n"])
