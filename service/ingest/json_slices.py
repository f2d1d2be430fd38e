"""A long JSON body with rows, cut between two of them without being parsed: each piece is parsed in a turn of its own.

A cut may be wrong: within a list inside a row, or where the body is no JSON. It is found out when its piece is parsed: read from the
beginning of a row, text that is a valid list up to a cut was cut between rows. So where every piece is valid, the body is, and the rows
are its rows.
"""

from __future__ import annotations

import re
from typing import Final

import msgspec

from service.problems import Malformed, TooLarge

_BEGIN: Final = re.compile(rb'[ \t\r\n]*(\{[ \t\r\n]*"rows"[ \t\r\n]*:[ \t\r\n]*)?\[[ \t\r\n]*')
_BETWEEN: Final = re.compile(rb"\}[ \t\r\n]*,[ \t\r\n]*(?=\{)")
_BLANK: Final = b" \t\r\n"
_LOOKS: Final = 32
_JUMP: Final = 4096


def rows_within(body: bytes) -> tuple[int, int]:
    """Where the rows of a list, or of an object ``{"rows": [...]}``, begin and end; raises Malformed where it begins as neither."""
    begin, text = _BEGIN.match(body), body.rstrip(_BLANK)
    if begin is not None and begin[1] and text.endswith(b"}"):
        text = text[:-1].rstrip(_BLANK)
        closed = text.endswith(b"]")
    else:
        closed = begin is not None and not begin[1] and text.endswith(b"]")
    if begin is None or not closed:
        allowed = 'a list of rows, or an object {"rows": [...]}'
        raise Malformed("the body holds no rows", field="rows", value="something else", allowed=allowed)
    return begin.end(), len(text[:-1].rstrip(_BLANK))


def row_end(body: bytes, start: int, place: int, end: int) -> tuple[int, int]:
    """Where a row seems to end, from ``place`` on, and where the next one begins; ``end`` twice where none does.

    A row begins at ``start``, so what lies within a text is known by the quotes from there on.
    """
    seen, quotes, looked = start, 0, 0
    while found := _BETWEEN.search(body, max(0, place - 1), end):
        stop, looked = found.start() + 1, looked + 1
        quotes += _quotes(body[seen:stop])
        if quotes % 2 == 0:
            return stop, found.end()
        # Where many seem to be, most are left out.
        seen, place = stop, stop + (_JUMP if looked % _LOOKS == 0 else 1)
    return end, end


def _quotes(text: bytes) -> int:
    """How many quotes begin or end a text."""
    if b"\\" in text:
        text = text.replace(b"\\\\", b"").replace(b'\\"', b"")
    return text.count(b'"')


def is_cut(piece: bytes) -> bool:
    """Whether a text that is no valid list could become one if it went on."""
    try:
        msgspec.json.decode(piece, type=list[msgspec.Raw])
    except (msgspec.DecodeError, RecursionError) as error:
        return "truncated" in str(error)
    return False


def row_too_long(most: int) -> TooLarge:
    """What a body with a row of more than ``most`` bytes is refused with."""
    return TooLarge(
        f"a row has more than {most} bytes, or is no object",
        field="rows",
        value=f"more than {most} bytes",
        allowed=f"JSON objects of at most {most} bytes",
    )
