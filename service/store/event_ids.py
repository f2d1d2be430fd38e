"""Event ids as the store keeps them: short, because a popular video has a great many.

One of up to ``LONGEST`` bytes stays as it is. A longer one becomes a 96-bit digest behind a byte that no text holds:
a billion ids of one video meet by chance with a probability below 1e-11, and never one that stayed as it is.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

LONGEST: Final = 16
NONE: Final = b"\0"
"""Stands for a row without an id."""

_DIGEST_BYTES: Final = 12
_DIGEST_HEAD: Final = bytes((_DIGEST_BYTES + 1, 0xFF))
_SIZES: Final = [bytes((size,)) for size in range(LONGEST + 1)]


def event_id(request: str, place: int) -> str:
    """The id of an event that has none of its own, in a request that has a key."""
    return f"idempotency-key {request} {place}"


def packed_ids(ids: Iterable[str | None]) -> list[bytes]:
    """Each id behind a byte that holds its length, as the store's function unpacks them; ids are not empty."""
    texts = [b"" if one is None else one.encode() for one in ids]
    return [
        _SIZES[len(text)] + text
        if len(text) <= LONGEST
        else _DIGEST_HEAD + blake2b(text, digest_size=_DIGEST_BYTES).digest()
        for text in texts
    ]
