"""A lease: work that one replica does at a time. It saves work twice done, and nothing depends on it for being right."""

from __future__ import annotations

import secrets
from contextlib import suppress
from typing import Final

from service.problems import Unavailable
from service.store.redis.connection import RedisConnection

# At maxmemory too: work that makes room is done under a lease.
_TAKE: Final = """#!lua flags=allow-oom
local holder = redis.call('GET', KEYS[1])
if holder and holder ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
"""
_GIVE: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"


class Lease:
    """Held by at most one of those who share ``key``, until ``ttl_s`` after it was last taken."""

    def __init__(self, link: RedisConnection, key: str, ttl_s: float) -> None:
        self._link, self._key, self._ttl_ms = link, key, round(ttl_s * 1000)
        self._token = secrets.token_hex(8)

    async def take(self) -> bool:
        """Take or renew it; False while another holds it."""
        reply = await self._link.pipeline("lease", [["EVAL", _TAKE, 1, self._key, self._token, self._ttl_ms]])
        return bool(reply[0])

    async def give(self) -> None:
        """Let another have it."""
        with suppress(Unavailable):
            await self._link.pipeline("lease", [["EVAL", _GIVE, 1, self._key, self._token]])
