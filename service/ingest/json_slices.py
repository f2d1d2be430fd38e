"""Cutting a long JSON body between two rows without parsing it, so that each slice can be parsed in a turn of its own.

A cut may be wrong: inside a nested list of a row, or where the body is not JSON. Parsing the slice shows that. A slice starts at
the start of a row; if it is a valid list up to the cut, the cut is between two rows. So where every slice is valid, the body is
valid, and its rows are the rows of the slices.
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
"""Possible ends that are looked at before ``_SKIP_BYTES`` are skipped."""
_SKIP_BYTES: Final = 4096


def rows_within(body: bytes) -> tuple[int, int]:
    """Where the rows of a list, or of an object ``{"rows": [...]}``, start and end; raises Malformed for anything else."""
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
    """Where a row seems to end, from ``position`` on, and where the next row starts; ``end`` twice where none does.

    A row must start at ``start``: the quotes from there on tell what is inside a string.
    """
    seen, quotes, looked = start, 0, 0
    while found := _BETWEEN.search(body, max(0, position - 1), end):
        stop, looked = found.start() + 1, looked + 1
        quotes += _quotes(body[seen:stop])
        if quotes % 2 == 0:
            return stop, found.end()
        # Among very many candidates, most are skipped.
        seen, position = stop, stop + (_SKIP_BYTES if looked % _CANDIDATES == 0 else 1)
    return end, end


def _quotes(text: bytes) -> int:
    """The number of quotes that start or end a string."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text.count(b'"')


def is_cut(text: bytes) -> bool:
    """Whether a text that is not a valid list could become one if it continued."""
    try:
        msgspec.json.decode(text, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        return "truncated" in str(error)
    return False


def row_too_long(limit: int) -> TooLarge:
    """The refusal of a body with a row of more than ``limit`` bytes."""
    return TooLarge(
        f"a row has more than {limit} bytes, or is not an object",
        field="rows",
        value=f"more than {limit} bytes",
        allowed=f"JSON objects of at most {limit} bytes",
    )
