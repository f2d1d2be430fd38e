"""The server's open connections: how many there are, which one is closed for a new one, and the limits of each."""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final

from prometheus_client.core import Metric

from service.metrics import counter, gauge
from service.settings import ServerSettings

_MIN_CONNECTIONS: Final = 8
_OTHER_FILES: Final = 48
"""Open files that are connections neither of clients nor of the store: libraries, the bundle, logs."""


class Connections:
    """Up to ``limit`` open connections. ``silent``: those that the server waits for, the longest silent one first."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.silent: OrderedDict[asyncio.Transport, None] = OrderedDict()
        self.partial = 0
        """Bytes of incomplete messages, of all WebSockets."""
        self.open = self.opened = self.refused = self.evicted = 0

    def make_room(self) -> bool:
        """Make room for one more, by closing the longest silent connection if necessary; False where that is impossible."""
        if self.open < self.limit:
            return True
        if not self.silent:
            self.refused += 1
            return False
        transport, _ = self.silent.popitem(last=False)
        self.evicted += 1
        # It stays in the count until it is closed, in the loop's next pass.
        transport.abort()
        return True

    def readings(self) -> list[Metric]:
        """The metrics for Prometheus."""
        return [
            gauge("m3tr_connections", "Open connections, WebSockets included", self.open),
            gauge("m3tr_connections_limit", "Limit of open connections", self.limit),
            counter("m3tr_connections_opened", "Accepted connections", self.opened),
            counter("m3tr_connections_refused", "Connections refused at the limit", self.refused),
            counter("m3tr_connections_evicted", "Silent connections closed to make room", self.evicted),
        ]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one connection: bytes of a request's head, and deadlines in seconds."""

    connections: Connections
    header_bytes: int
    head_deadline_s: float
    write_deadline_s: float
    message_deadline_s: float


def connection_limit(settings: ServerSettings, store_connections: int) -> int:
    """How many connections are allowed: the setting, or fewer where this process may not open as many files.

    Raises the process's soft limit of open files as far as that helps.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = store_connections + _OTHER_FILES
    wanted = settings.max_connections + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    available = settings.max_connections if soft == resource.RLIM_INFINITY else soft - others
    return max(_MIN_CONNECTIONS, min(settings.max_connections, available))
