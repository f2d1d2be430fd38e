"""A lease, for work that only one replica should do at a time. A lease avoids duplicate work. No result depends on it.

redis-py's ``Lock`` is not used, for three reasons. ``Lock`` uses ``SET NX``, which fails at maxmemory. At maxmemory, however, the work
that frees memory needs its lease. ``Lock`` needs different calls to acquire and to renew. ``Lock`` calls a client directly, without our
deadline, metrics and errors.
"""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Final

from service.problems import Unavailable
from service.store.redis.connection import RedisConnection

# This script is also allowed at maxmemory, because the work that frees memory needs its lease.
_ACQUIRE: Final = """#!lua flags=allow-oom
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Lease:
    """A lease stored at ``key``. At most one replica holds it. The lease ends ``ttl_s`` seconds after it was acquired or renewed."""

    def __init__(self, connection: RedisConnection, key: str, ttl_s: float) -> None:
        self._connection, self._key, self._ttl_ms = connection, key, round(ttl_s * 1000)
        self._token = secrets.token_hex(8)

    async def acquire(self) -> bool:
        """Acquire or renew the lease. Return False if another replica holds it."""
        reply = await self._connection.pipeline("lease", [["EVAL", _ACQUIRE, 1, self._key, self._token, self._ttl_ms]])
        return bool(reply[0])

    async def release(self) -> None:
        """Release the lease, if this replica still holds it."""
        with suppress(Unavailable):
            await self._connection.pipeline("lease", [["EVAL", _RELEASE, 1, self._key, self._token]])
