"""Cuts a long JSON body into slices, between two rows and without parsing. Each slice can then be parsed in a separate turn.

A cut may be at a wrong place, such as inside a nested list of a row, or the body may not be JSON at all. Parsing the slice detects
both. Each slice begins at the start of a row. If the text from that start to the cut is a valid list of rows, the cut is between two
rows. So if every slice is valid, the whole body is valid, and the body's rows are the rows of the slices.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from service.problems import Malformed, TooLarge
from service.strict_json import ROWS_ALLOWED

_BEGIN: Final = re.compile(rb'[ \t\r\n]*(\{[ \t\r\n]*"rows"[ \t\r\n]*:[ \t\r\n]*)?\[[ \t\r\n]*')
_BETWEEN: Final = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_BLANK: Final = b" \t\r\n"
_CANDIDATES: Final = 32
"""Number of possible ends of a row that are examined before ``_SKIP_BYTES`` bytes are skipped."""
_SKIP_BYTES: Final = 4096


def rows_within(body: bytes) -> tuple[int, int]:
    """Return the positions where the rows of a body start and end.

    The body is a list, or an object ``{"rows": [...]}``. Raise Malformed if it is anything else.
    """
    begin, text = _BEGIN.match(body), body.rstrip(_BLANK)
    if begin is not None and begin[1] and text.endswith(b"}"):
        text = text[:-1].rstrip(_BLANK)
        closed = text.endswith(b"]")
    else:
        closed = begin is not None and not begin[1] and text.endswith(b"]")
    if begin is None or not closed:
        raise Malformed("the body holds no rows", field="rows", value="something else", allowed=ROWS_ALLOWED)
    return begin.end(), len(text[:-1].rstrip(_BLANK))


def row_end(body: bytes, start: int, position: int, end: int) -> tuple[int, int]:
    """Find the first position from ``position`` on where a row seems to end. Return that position and the next row's start.

    Return ``end`` twice if no row seems to end before ``end``. A row must start at ``start``. The quotes after ``start`` show which
    text is inside a string.
    """
    seen, quotes, looked = start, 0, 0
    while found := _BETWEEN.search(body, max(0, position - 1), end):
        stop, looked = found.start() + 1, looked + 1
        quotes += _quotes(body[seen:stop])
        if quotes % 2 == 0:
            return stop, found.end()
        # If there are very many candidates, most of them are skipped.
        seen, position = stop, stop + (_SKIP_BYTES if looked % _CANDIDATES == 0 else 1)
    return end, end


def _quotes(text: bytes) -> int:
    """Return the number of quotes that start or end a string."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text.count(b'"')


def is_cut(text: bytes) -> bool:
    """Return whether a text that is not a valid list might become one if more text followed."""
    try:
        msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        return "truncated" in str(error)
    return False


def row_too_long(limit: int) -> TooLarge:
    """Return the error for a body with a row of more than ``limit`` bytes."""
    return TooLarge(
        f"a row has more than {limit} bytes, or is not an object",
        field="rows",
        value=f"more than {limit} bytes",
        allowed=f"JSON objects of at most {limit} bytes",
    )
