"""Decodes rows in MessagePack."""

from __future__ import annotations

from typing import Annotated, Any

import msgspec

from service.problems import Invalid
from service.strict_json import BrokenLine


def parse_packed(rows: msgspec.Raw, limit: int) -> list[msgspec.Raw]:
    """Split a MessagePack list into its rows, without unpacking them.

    Raise Invalid if ``rows`` is not a list of up to ``limit`` rows.
    """
    try:
        items: list[msgspec.Raw] = msgspec.msgpack.decode(
            rows, type=Annotated[list[msgspec.Raw], msgspec.Meta(max_length=limit)]
        )
    except msgspec.DecodeError as error:
        raise Invalid("rows", str(error), f"a list of at most {limit} rows") from None
    return items


def unpack(row: msgspec.Raw) -> Any:
    """Unpack a row in MessagePack. Return a ``BrokenLine`` if the row is not valid MessagePack."""
    try:
        return msgspec.msgpack.decode(row)
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
        return BrokenLine(repr(bytes(row)[:100]))
