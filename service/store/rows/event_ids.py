"""Event ids as the store keeps them: short, because a popular video has very many.

An id of up to ``MAX_PLAIN`` bytes is kept as it is. A longer one is replaced by a 96-bit digest after a byte that no text
contains. Among a billion ids of one video, two digests are equal with a probability below 1e-11, and a digest never equals an id
that was kept as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

MAX_PLAIN: Final = 16
NONE: Final = b"\0"
"""Stands for a row without an id."""

_DIGEST_BYTES: Final = 12
_DIGEST_HEAD: Final = bytes((_DIGEST_BYTES + 1, 0xFF))
_SIZES: Final = [bytes((size,)) for size in range(MAX_PLAIN + 1)]


def event_id(request: str, index: int) -> str:
    """The id of an event that has none of its own, from its request's key and its position in the request."""
    return f"idempotency-key {request} {index}"


def packed_ids(ids: Iterable[str | None]) -> list[bytes]:
    """Each id after a byte with its length, as the store's function unpacks them; ids must not be empty."""
    texts = [b"" if one is None else one.encode() for one in ids]
    return [
        _SIZES[len(text)] + text
        if len(text) <= MAX_PLAIN
        else _DIGEST_HEAD + blake2b(text, digest_size=_DIGEST_BYTES).digest()
        for text in texts
    ]
