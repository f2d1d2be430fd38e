"""JSON as RFC 8259 has it: whole bodies, lists of rows, and lines of NDJSON."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any, Final

import orjson

from service.problems import Malformed

BYTE_ORDER_MARK: Final = b"\xef\xbb\xbf"
"""Tools of Windows put it at the beginning of a file; it is not part of the text (RFC 8259 8.1)."""
ROWS_ALLOWED: Final = 'a list of rows, or an object {"rows": [...]}'
_SECOND_PARSE_BYTES: Final = 2**20
"""Longer bodies are not parsed a second time."""


class BrokenLine(str):
    """A line of NDJSON that is not JSON; takes the position of its row."""


def parse_json(body: bytes) -> Any:
    """Parse strict JSON; raises Malformed.

    A byte order mark at the beginning is skipped. NaN, Infinity and lone surrogates are let through: they are refused later,
    where their field is known.
    """
    body = body.removeprefix(BYTE_ORDER_MARK)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Python's own parser is slow. It is tried only for what it accepts and orjson does not.
        if len(body) <= _SECOND_PARSE_BYTES and any(mark in body for mark in (b"NaN", b"Infinity", b"\\ud", b"\\uD")):
            with suppress(ValueError, RecursionError):
                return json.loads(body)
        raise Malformed(f"not valid JSON: {error}") from None


def parse_rows(body: bytes) -> list[Any]:
    """The rows of a JSON body: a list, or an object ``{"rows": [...]}``; raises Malformed."""
    value = parse_json(body)
    items = value.get("rows") if isinstance(value, dict) and set(value) == {"rows"} else value
    if not isinstance(items, list):
        raise Malformed("the body holds no rows", field="rows", value=type(items).__name__, allowed=ROWS_ALLOWED)
    return items


def parse_line(line: bytes) -> Any:
    """The value of a line of NDJSON, or a ``BrokenLine``."""
    try:
        return parse_json(line)
    except Malformed:
        return BrokenLine(line[:200].decode("utf-8", "replace"))
