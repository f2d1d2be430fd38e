"""A lease: work that one replica does at a time. It only saves work that would be done twice; correctness does not depend on it."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Final

from service.problems import Unavailable
from service.store.redis.connection import RedisConnection

# Runs at maxmemory too: work that frees memory is done under a lease.
_TAKE: Final = """#!lua flags=allow-oom
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_RELEASE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Lease:
    """One of the replicas that share ``key`` holds it, until ``ttl_s`` after it was last taken."""

    def __init__(self, connection: RedisConnection, key: str, ttl_s: float) -> None:
        self._connection, self._key, self._ttl_ms = connection, key, round(ttl_s * 1000)
        self._token = secrets.token_hex(8)

    async def take(self) -> bool:
        """Take or renew the lease; False while another replica holds it."""
        reply = await self._connection.pipeline("lease", [["EVAL", _TAKE, 1, self._key, self._token, self._ttl_ms]])
        return bool(reply[0])

    async def give(self) -> None:
        """Release the lease."""
        with suppress(Unavailable):
            await self._connection.pipeline("lease", [["EVAL", _RELEASE, 1, self._key, self._token]])
