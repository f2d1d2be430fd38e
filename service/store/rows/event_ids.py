"""Packs event ids into the short form that the store keeps. The form is short, because a popular video has very many event ids.

An id of up to ``MAX_PLAIN`` bytes is kept unchanged. A longer id is replaced by a 96-bit digest. The digest follows a byte that
never occurs in UTF-8 text, so a digest never equals an id that was kept unchanged. Among a billion ids of one video, the probability
that two digests are equal is below 1e-11.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import blake2b
from typing import Final

MAX_PLAIN: Final = 16
NONE: Final = b"\0"
"""Packed form of a missing id."""

_DIGEST_BYTES: Final = 12
_DIGEST_HEAD: Final = bytes((_DIGEST_BYTES + 1, 0xFF))
_SIZES: Final = [bytes((size,)) for size in range(MAX_PLAIN + 1)]


def event_id(request: str, index: int) -> str:
    """Make an id for an event without one, from the request's idempotency key and the event's position in the request."""
    return f"idempotency-key {request} {index}"


def packed_ids(ids: Iterable[str | None]) -> list[bytes]:
    """Pack each id as a byte with the length, followed by the id. The store's Lua functions unpack this form.

    An id must not be an empty text. None stands for a missing id.
    """
    texts = [b"" if one is None else one.encode() for one in ids]
    return [
        _SIZES[len(text)] + text
        if len(text) <= MAX_PLAIN
        else _DIGEST_HEAD + blake2b(text, digest_size=_DIGEST_BYTES).digest()
        for text in texts
    ]
