"""Every open connection of the server: how many there are, and which may be closed to make room."""

from __future__ import annotations

import asyncio
import resource
from collections import OrderedDict
from typing import Final

from prometheus_client.core import Metric

from service.metrics import counter, gauge
from service.settings import ServerSettings

_LEAST: Final = 8
_FILES: Final = 48
"""Open files that are neither connections of clients nor of the store: libraries, the bundle, logs."""


class Connections:
    """At most ``most`` at once. ``silent`` are those from which something is awaited, the one that was longest silent first."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.silent: OrderedDict[asyncio.Transport, None] = OrderedDict()
        self.partial = 0
        """Bytes of messages that are not whole, of all WebSockets."""
        self.open = self.opened = self.refused = self.evicted = 0

    def make_room(self) -> bool:
        """Room for one more, if need be by closing the connection that was silent longest; False where there is none."""
        if self.open < self.most:
            return True
        if not self.silent:
            self.refused += 1
            return False
        transport, _ = self.silent.popitem(last=False)
        self.evicted += 1
        # It counts until it is gone, which is in the loop's next turn.
        transport.abort()
        return True

    def readings(self) -> list[Metric]:
        """What Prometheus reads."""
        return [
            gauge("m3tr_connections", "Open connections, WebSockets included", self.open),
            gauge("m3tr_connections_limit", "Connections at once, at most", self.most),
            counter("m3tr_connections_opened", "Connections taken", self.opened),
            counter("m3tr_connections_refused", "Connections refused, as there was no room", self.refused),
            counter("m3tr_connections_evicted", "Silent connections closed to make room", self.evicted),
        ]


def room(settings: ServerSettings, store_connections: int) -> int:
    """Connections that are allowed: the setting, as far as this process may open files (its soft limit is raised for it)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    others = store_connections + _FILES
    wanted = settings.max_connections + others
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    left = settings.max_connections if soft == resource.RLIM_INFINITY else soft - others
    return max(_LEAST, min(settings.max_connections, left))
