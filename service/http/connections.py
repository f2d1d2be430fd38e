"""Counts the server's open connections, and decides which one is closed to make room for a new one.

This module also defines the limits of one connection.
"""

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
"""Number of open files reserved for libraries, the bundle and logs. Connections to clients and to the event store are not
included."""


class Connections:
    """The server's open connections. There may be up to ``limit`` of them.

    ``silent``: the connections on which the server waits for a request. The connection that has been silent longest comes first.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.silent: OrderedDict[asyncio.Transport, None] = OrderedDict()
        self.partial = 0
        """Number of bytes of incomplete messages, over all WebSockets."""
        self.open = self.opened = self.refused = self.evicted = 0

    def make_room(self) -> bool:
        """Make room for a new connection. Return False if there is no room.

        If necessary, the connection that has been silent longest is closed.
        """
        if self.open < self.limit:
            return True
        if not self.silent:
            self.refused += 1
            return False
        transport, _ = self.silent.popitem(last=False)
        self.evicted += 1
        # The closed connection still counts as open until the event loop's next pass.
        transport.abort()
        return True

    def readings(self) -> list[Metric]:
        """Return the metrics for Prometheus."""
        return [
            gauge("m3tr_connections", "Number of open connections, including WebSockets", self.open),
            gauge("m3tr_connections_limit", "Maximum number of open connections", self.limit),
            counter("m3tr_connections_opened", "Number of accepted connections", self.opened),
            counter("m3tr_connections_refused", "Number of connections refused at the limit", self.refused),
            counter("m3tr_connections_evicted", "Number of idle connections closed to make room", self.evicted),
        ]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of one connection: the maximum number of bytes in a request's head, and deadlines in seconds."""

    connections: Connections
    header_bytes: int
    head_deadline_s: float
    write_deadline_s: float
    message_deadline_s: float


def connection_limit(settings: ServerSettings, store_connections: int) -> int:
    """Return how many connections are allowed.

    The result is the setting ``max_connections``, or less if the operating system does not let this process open enough files. If
    necessary, the process's soft limit on open files is raised, as far as its hard limit allows.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = store_connections + _OTHER_FILES
    wanted = settings.max_connections + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    available = settings.max_connections if soft == resource.RLIM_INFINITY else soft - others
    return max(_MIN_CONNECTIONS, min(settings.max_connections, available))
