"""What may be kept of a video's id once the video is to be forgotten: a digest, from which a bank finds its points.

A tombstone is 46 hex digits: 8 bytes of the id's hash, which are the key of an embedded bank, and 15 bytes of another, which are
that of a server's.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final
from uuid import UUID

_EDGE_BYTES: Final = 8
_SERVER_BYTES: Final = 15


def tombstone(video_id: str) -> str:
    """The tombstone of a video."""
    return (_hash(video_id, _EDGE_BYTES) + _hash(video_id, _SERVER_BYTES)).hex()


def edge_key(mark: str) -> int:
    """Point id, in an embedded bank, of the video that a tombstone stands for."""
    return int(mark[: 2 * _EDGE_BYTES], 16)


def server_key(mark: str) -> str:
    """Id, in a server's bank, of the content point of the video that a tombstone stands for."""
    return str(UUID(bytes=bytes.fromhex(mark[2 * _EDGE_BYTES :]) + b"\0"))


def edge_key_of(video_id: str) -> int:
    """Point id of a video in an embedded bank: two of a million videos collide with probability 3e-8."""
    return int.from_bytes(_hash(video_id, _EDGE_BYTES), "big")


def server_key_of(video_id: str) -> str:
    """Id of a video's content point in a server's bank (120 bits of its hash)."""
    return str(UUID(bytes=_hash(video_id, _SERVER_BYTES) + b"\0"))


def _hash(video_id: str, size: int) -> bytes:
    return blake2b(video_id.encode(), digest_size=size).digest()
