"""Parses JSON strictly as RFC 8259 defines it: whole bodies, lists of rows, and lines of NDJSON."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final

import orjson

from service.problems import Malformed

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""Byte order mark. Windows tools put this mark at the beginning of a file. The mark is not part of the text (RFC 8259 8.1)."""
ROWS_ALLOWED: Final = 'a list of rows, or an object {"rows": [...]}'
_SECOND_PARSE_BYTES: Final = 2**20
"""Maximum size in bytes of a body that is parsed a second time, with Python's own parser."""


class BrokenLine(str):
    """A line of NDJSON that is not valid JSON. The ``BrokenLine`` takes the row's place in the list of rows."""


def parse_json(body: bytes) -> Any:
    """Parse strict JSON. Raises Malformed.

    A byte order mark at the beginning is skipped. NaN, Infinity and lone surrogates are accepted here. They are refused later, when their
    field is known.
    """
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Python's own parser is slow. It is tried only for values that it accepts and orjson refuses.
        if len(body) <= _SECOND_PARSE_BYTES and any(mark in body for mark in (b"NaN", b"Infinity", b"\\ud", b"\\uD")):
            with suppress(ValueError, RecursionError):
                return json.loads(body)
        raise Malformed(f"not valid JSON: {error}") from None


def parse_rows(body: bytes) -> list[Any]:
    """Return the rows of a JSON body. The body is a list, or an object ``{"rows": [...]}``. Raises Malformed."""
    value = parse_json(body)
    items = value.get("rows") if isinstance(value, dict) and set(value) == {"rows"} else value
    if not isinstance(items, list):
        raise Malformed("the body holds no rows", field="rows", value=type(items).__name__, allowed=ROWS_ALLOWED)
    return items


def parse_line(line: bytes) -> Any:
    """Return the value of a line of NDJSON, or a ``BrokenLine``."""
    try:
        return parse_json(line)
    except Malformed:
        return BrokenLine(line[:200].decode("utf-8", "replace"))
