"""Tombstones: a digest of a forgotten video's id, by which a bank finds the video's points without the id.

A tombstone has 46 hex digits: an 8-byte hash of the id, which is the video's key in an embedded bank, and a 15-byte hash, which is its
key in a server's bank.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from uuid import UUID

_EMBEDDED_BYTES: Final = 8
_SERVER_BYTES: Final = 15


def tombstone(video_id: str) -> str:
    """The tombstone of a video."""
    return (_hash(video_id, _EMBEDDED_BYTES) + _hash(video_id, _SERVER_BYTES)).hex()


def embedded_key(tombstone: str) -> int:
    """Id, in an embedded bank, of the point of the video with this tombstone."""
    return int(tombstone[: 2 * _EMBEDDED_BYTES], 16)


def server_key(tombstone: str) -> str:
    """Id, in a server's bank, of the content point of the video with this tombstone."""
    return str(UUID(bytes=bytes.fromhex(tombstone[2 * _EMBEDDED_BYTES :]) + b"\0"))


def embedded_key_of(video_id: str) -> int:
    """Id of a video's point in an embedded bank. The probability that two of a million videos collide is 3e-8."""
    return int.from_bytes(_hash(video_id, _EMBEDDED_BYTES), "big")


def server_key_of(video_id: str) -> str:
    """Id of a video's content point in a server's bank (120 bits of its hash)."""
    return str(UUID(bytes=_hash(video_id, _SERVER_BYTES) + b"\0"))


def _hash(video_id: str, size: int) -> bytes:
    return blake2b(video_id.encode(), digest_size=size).digest()
