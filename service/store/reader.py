"""Connections for blocking reads: a call that waits for news must not take one from the store's calls."""

from __future__ import annotations

from typing import Any, Final

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

BLOCK_S: Final = 5
"""Seconds that a read waits for news before it asks again."""


def connect(url: str, deadline_s: float) -> Any:
    """A client (``Redis``) for one reader; calls may block for ``BLOCK_S`` and then have ``deadline_s`` to answer.

    Any, because the library's own types of stream replies say less than protocol 2 guarantees, and differ by release.
    """
    return Redis.from_url(
        url,
        protocol=2,
        max_connections=2,
        socket_timeout=BLOCK_S + deadline_s,
        socket_connect_timeout=deadline_s,
        retry=Retry(NoBackoff(), 0),
        client_name="m3tr-reader",
    )


def stream_id(text: bytes | str) -> tuple[int, int]:
    """A stream entry's id, in an order that can be compared."""
    left, _, right = (text.decode() if isinstance(text, bytes) else text).partition("-")
    return int(left), int(right or 0)
