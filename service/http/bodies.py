"""Request bodies: read within a limit, unpacked, and parsed.

Nothing is read past the limit, neither of what was sent nor of what it unpacks to. NDJSON has no limit as a whole: it is
taken in batches while it arrives.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Final

import msgspec
import numpy as np
import orjson
from starlette.requests import ClientDisconnect, Request

from service.http.visit import CYCLE, GONE, Visit
from service.problems import Invalid, Malformed, TooLarge, TooSlow, WrongMedia, shown
from service.turns import Turns

JSON: Final = "application/json"
NDJSON: Final = ("application/x-ndjson", "application/ndjson")
MARK: Final = b"\xef\xbb\xbf"
"""A byte order mark, with which tools of Windows begin a file; it is no part of the text (RFC 8259 8.1)."""
_GZIP: Final = ("gzip", "x-gzip")
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS
_PART: Final = 64 * 1024
LARGE: Final = 256 * 1024
"""Bytes up to which a body is parsed without a look at how many values it holds: never more than milliseconds."""
_LINES_BYTES: Final = 2 * 2**20
"""Bytes of lines that are dealt with together, about."""
_SECOND_LOOK: Final = 2**20
VALUE_BYTES: Final = 64
"""Memory of one parsed value, about."""
_CLOSE: Final = {"Connection": "close"}
BATCH_LINES: Final = 2048
"""Lines of NDJSON that are stored together: some milliseconds, in the store as here, for which others wait."""


class BrokenLine(str):
    """A line of NDJSON that is no JSON; stands where its row would be."""


def media_type(request: Request) -> str:
    """The content type without parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may take: bytes as sent and after unpacking, and seconds to arrive.

    A stream of lines has no size; its lines have (``line`` bytes), and ``deadline_s`` is for the next bytes. ``values`` is how
    many JSON values one body may hold: what parsing costs depends on them, in time (it stops everybody else) and memory.
    """

    size: int
    line: int
    deadline_s: float
    values: int = 250_000
    turns: Turns = field(default_factory=Turns)


async def read_json(request: Request, limits: Limits) -> Any:
    """The body as JSON."""
    _check_media(request, JSON)
    return parse_json(await read_body(request, limits))


def is_lines(request: Request) -> bool:
    """Whether rows come as NDJSON rather than JSON; raises WrongMedia when they come as neither."""
    return _check_media(request, JSON, *NDJSON) in NDJSON


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, unpacked; raises TooLarge as soon as it is known to be, and TooSlow at the deadline.

    Its bytes are held until the answer is written; the request has its place when this returns.
    """
    visit = Visit.of(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.size:
        raise _too_large(int(declared), limits.size)
    cycle = request.scope.get(CYCLE)
    if cycle is not None and not cycle.more_body and len(cycle.body) <= LARGE and not _is_gzip(request):
        return await _arrived(request, limits, visit)
    received, values, parts = 0, 0, list[bytes]()
    try:
        async with asyncio.timeout(limits.deadline_s):
            async for part in _unpacked(request, _pieces(request, limits.size), limits.turns):
                received += len(part)
                if received > limits.size:
                    raise _too_large(received, limits.size)
                visit.hold(len(part))
                parts.append(part)
                if received > LARGE:
                    # Counted as it comes, so that no more of it is read than is needed to refuse it.
                    values += sum(map(count_values, parts if not values else (part,)))
                    check_values(values, limits.values)
                    await limits.turns.take(visit.client)
    except TimeoutError:
        raise _too_slow(limits.deadline_s) from None
    body = b"".join(parts).removeprefix(MARK)
    if values:
        check_gone(request)
        visit.hold(VALUE_BYTES * values)
    if not visit.enter_now():
        await visit.enter()
    return body


async def _arrived(request: Request, limits: Limits, visit: Visit) -> bytes:
    """A short body that is here: nothing of it has to be waited for."""
    body: bytes | None = (await request.receive()).get("body")
    if body is None:
        raise Malformed("the body ended early")
    if len(body) > limits.size:
        raise _too_large(len(body), limits.size)
    visit.hold(len(body))
    if not visit.enter_now():
        await visit.enter()
    return body.removeprefix(MARK)


async def read_lines(request: Request, limits: Limits, most: int) -> AsyncIterator[list[bytes]]:
    """The lines of a body of any length, blank ones left out, ``most`` at a time or fewer where they are long.

    The request has its place while a batch is dealt with, and not while it waits for the next. Only those lines and the newest
    bytes are held. Raises TooLarge at a line that is too long, TooSlow when bytes fail to come, Malformed where no line comes at
    all: whoever announces rows and sends none has lost them.
    """
    visit = Visit.of(request)
    most = min(most, BATCH_LINES)
    lines: list[bytes] = []
    rest, any_line, size = b"", False, 0
    async for part in _unpacked(request, _timed(_pieces(request), limits.deadline_s), limits.turns):
        visit.hold(len(part))
        part = rest + part
        *whole, rest = part.split(b"\n")
        if MARK in part:
            # Files that were put together have one in the middle as well.
            whole = [line.removeprefix(MARK) for line in whole]
        longest = max(map(len, (*whole, rest)))
        if longest > limits.line:
            raise _too_large(longest, limits.line, "line")
        lines += [line for line in whole if line and not line.isspace()]
        size += len(part)
        while len(lines) >= most or (lines and size >= _LINES_BYTES):
            any_line = True
            check_gone(request)
            await visit.enter()
            yield lines[:most]
            visit.leave()
            del lines[:most]
            size = len(rest) + sum(map(len, lines))
            visit.hold(size - visit.held)
    rest = rest.removeprefix(MARK)
    if rest and not rest.isspace():
        lines.append(rest)
    if lines:
        await visit.enter()
        yield lines
    elif not any_line:
        raise Malformed("the body holds no row", field="body", value="empty", allowed="one JSON object a line")


def _check_media(request: Request, *allowed: str) -> str:
    kind = media_type(request)
    if kind not in allowed:
        shown = ", ".join(allowed)
        raise WrongMedia(f"content type {kind or 'missing'}", field="Content-Type", value=kind, allowed=shown)
    return kind


def _is_gzip(request: Request) -> bool:
    """Whether the body is gzip; raises WrongMedia for other encodings, and for several one upon the other."""
    if "content-encoding" not in request.headers:
        return False
    given = ",".join(request.headers.getlist("content-encoding"))
    encodings = [name for name in (part.strip().lower() for part in given.split(",")) if name not in ("", "identity")]
    if encodings and (len(encodings) > 1 or encodings[0] not in _GZIP):
        raise WrongMedia(
            f"content encoding {shown(given)}", field="Content-Encoding", value=shown(given), allowed="gzip, identity"
        )
    return bool(encodings)


async def _pieces(request: Request, limit: int | None = None) -> AsyncIterator[bytes]:
    """The body as it was sent."""
    received = 0
    try:
        async for piece in request.stream():
            received += len(piece)
            if limit is not None and received > limit:
                raise _too_large(received, limit)
            yield piece
    except ClientDisconnect:
        raise Malformed("the body ended early") from None


async def _timed(pieces: AsyncIterator[bytes], deadline_s: float) -> AsyncIterator[bytes]:
    """The same pieces, each within the deadline."""
    while True:
        try:
            async with asyncio.timeout(deadline_s):
                piece = await anext(pieces)
        except StopAsyncIteration:
            return
        except TimeoutError:
            raise _too_slow(deadline_s) from None
        yield piece


async def _unpacked(request: Request, pieces: AsyncIterator[bytes], turns: Turns) -> AsyncIterator[bytes]:
    """The pieces, unpacked where the body is gzip, into parts of at most ``_PART`` bytes."""
    unpacker = Gunzip() if _is_gzip(request) else None
    async for piece in pieces:
        if unpacker is None:
            yield piece
            continue
        for part in unpacker.feed(piece):
            yield part
            # Much may come out of little: others have their turn in between.
            await turns.take(Visit.of(request).client)
    if unpacker is not None:
        unpacker.finish()


def check_gone(request: Request) -> None:
    """Raise Malformed where the client has left: nobody is to be told what becomes of its body."""
    gone = request.scope.get(GONE)
    if gone is not None and gone():
        raise Malformed("the client left before its rows were stored")


def count_values(body: bytes) -> int:
    """How many values a part of a JSON text may hold, at most: each but the first follows a comma or opens a list or an object."""
    characters = np.frombuffer(body, np.uint8)
    return 1 + sum(int(np.count_nonzero(characters == ord(mark))) for mark in ",[{")


def check_values(values: int, most: int) -> None:
    """Raise TooLarge for more than ``most`` values."""
    if values > most:
        raise TooLarge(
            f"the body holds more than {most} values",
            headers=_CLOSE,
            field="body",
            value=f"{values} values or more",
            allowed=f"at most {most} values (commas and opening brackets are counted); send more as NDJSON",
        )


def parse_rows(body: bytes) -> list[Any]:
    """The rows of a JSON body: a list, or an object ``{"rows": [...]}``."""
    value = parse_json(body)
    items = value.get("rows") if isinstance(value, dict) and set(value) == {"rows"} else value
    if not isinstance(items, list):
        allowed = 'a list of rows, or an object {"rows": [...]}'
        raise Malformed("the body holds no rows", field="rows", value=type(items).__name__, allowed=allowed)
    return items


def parse_json(body: bytes) -> Any:
    """Strict JSON, except that NaN, Infinity and lone surrogates are let through to where their field is known.

    They are refused there. A byte order mark at the beginning is no part of it.
    """
    body = body.removeprefix(MARK)
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        # Only what Python's own parser takes, and no other does, is worth the second look, which takes longer.
        if len(body) <= _SECOND_LOOK and any(mark in body for mark in (b"NaN", b"Infinity", b"\\ud", b"\\uD")):
            with suppress(ValueError, RecursionError):
                return json.loads(body)
        raise Malformed(f"no valid JSON: {error}") from None


def parse_line(line: bytes) -> Any:
    """A line of NDJSON, or what stands for a broken one."""
    try:
        return parse_json(line)
    except Malformed:
        return BrokenLine(line[:200].decode("utf-8", "replace"))


def parse_packed(rows: msgspec.Raw, most: int) -> list[msgspec.Raw]:
    """The rows of a list in MessagePack, not unpacked yet; raises Invalid where it is no list, or longer than ``most``."""
    try:
        items: list[msgspec.Raw] = msgspec.msgpack.decode(
            rows, type=Annotated[list[msgspec.Raw], msgspec.Meta(max_length=most)]
        )
    except msgspec.DecodeError as error:
        raise Invalid("rows", str(error), f"a list of at most {most} rows") from None
    return items


def unpack(row: msgspec.Raw) -> Any:
    """A row in MessagePack, or what stands for a broken one."""
    try:
        return msgspec.msgpack.decode(row)
    except (msgspec.DecodeError, TypeError, ValueError, RecursionError):
        return BrokenLine(repr(bytes(row)[:100]))


def _too_large(size: int, limit: int, field: str = "body") -> TooLarge:
    return TooLarge(
        f"the {field} has more than {limit} bytes",
        headers=_CLOSE,
        field=field,
        value=f"{size} bytes or more",
        allowed=f"at most {limit} bytes",
    )


def _too_slow(deadline_s: float) -> TooSlow:
    return TooSlow(f"the body did not arrive within {deadline_s:g} s", headers=_CLOSE, field="body")


class Gunzip:
    """Unpacks gzip members one after the other, in parts of at most ``_PART`` bytes."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._begun = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """What the next bytes unpack to."""
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_WINDOW)
            self._begun = True
            try:
                part = self._member.decompress(data, _PART)
            except zlib.error as error:
                raise Malformed(
                    f"broken gzip: {error}", field="body", value="gzip", allowed="a whole gzip stream"
                ) from None
            yield part
            data = self._member.unconsumed_tail or self._member.unused_data

    def finish(self) -> None:
        """Raise Malformed unless the last member is whole."""
        if not self._begun or not self._member.eof:
            raise Malformed("broken gzip: it ends early", field="body", value="gzip", allowed="a whole gzip stream")
