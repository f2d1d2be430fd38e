"""Tombstones of forgotten videos.

A tombstone is a digest of a video's id. With a tombstone, a bank finds the points of the video without knowing the
id. A tombstone has 46 hex digits and consists of two hashes of the id. The first hash has 8 bytes and is the video's
key in an embedded bank. The second hash has 15 bytes and is the video's key in the bank on a server.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from uuid import UUID

_EMBEDDED_BYTES: Final = 8
_SERVER_BYTES: Final = 15


def tombstone(video_id: str) -> str:
    """Return the tombstone of a video."""
    return (_hash(video_id, _EMBEDDED_BYTES) + _hash(video_id, _SERVER_BYTES)).hex()


def embedded_key(tombstone: str) -> int:
    """Return the id that a video's point has in an embedded bank, computed from the video's tombstone."""
    return int(tombstone[: 2 * _EMBEDDED_BYTES], 16)


def server_key(tombstone: str) -> str:
    """Return the id that a video's content point has in the bank on a server, computed from the video's tombstone."""
    return str(UUID(bytes=bytes.fromhex(tombstone[2 * _EMBEDDED_BYTES :]) + b"\0"))


def embedded_key_of(video_id: str) -> int:
    """Return the id that a video's point has in an embedded bank.

    Among a million videos, the probability that two videos collide is 3e-8.
    """
    return int.from_bytes(_hash(video_id, _EMBEDDED_BYTES), "big")


def server_key_of(video_id: str) -> str:
    """Return the id that a video's content point has in the bank on a server. The id contains a 120-bit hash of the video's id."""
    return str(UUID(bytes=_hash(video_id, _SERVER_BYTES) + b"\0"))


def _hash(video_id: str, size: int) -> bytes:
    return blake2b(video_id.encode(), digest_size=size).digest()
