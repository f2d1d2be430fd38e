"""Reads request bodies, either whole or line by line. Bodies are decompressed, and their size and time are limited.

The size limit applies to the bytes as sent and to the decompressed bytes. Reading stops when the limit is reached. The
size of an NDJSON body as a whole is not limited, because its lines are handled in batches while the body arrives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, Final

from starlette.requests import ClientDisconnect, Request

from service.fair_turns import Turns
from service.http.gzip_stream import Gunzip
from service.http.media import JSON, check_media, is_gzip
from service.http.value_limit import UNCOUNTED_BYTES, VALUE_BYTES, check_values, count_values
from service.http.visit import CYCLE, GONE, Visit
from service.problems import Malformed, TooLarge, TooSlow
from service.strict_json import BYTE_ORDER_MARK, parse_json

BATCH_LINES: Final = 2048
"""Maximum number of NDJSON lines that are stored together. Storing that many lines takes this service and the store a few milliseconds."""
_BATCH_BYTES: Final = 2 * 2**20
"""Approximate maximum size in bytes of a batch of NDJSON lines."""
_CLOSE: Final = {"Connection": "close"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a request body.

    ``size``: maximum number of bytes, as sent and after decompression.
    ``line``: maximum number of bytes in one NDJSON line.
    ``deadline_s``: time limit for receiving the body. For NDJSON, time limit for receiving the next bytes.
    ``values``: maximum number of JSON values in one body. The time and memory for parsing depend on this number, and no other
    request is handled during parsing.
    ``turns``: shares the event loop between clients.
    """

    size: int
    line: int
    deadline_s: float
    values: int = 250_000
    turns: Turns = field(default_factory=Turns)


async def read_json(request: Request, limits: Limits) -> Any:
    """Read the body and parse it as JSON."""
    check_media(request, JSON)
    return parse_json(await read_body(request, limits))


async def read_body(request: Request, limits: Limits) -> bytes:
    """Read the whole body and decompress it. Then take a slot of the concurrency limit, or wait for one.

    The body's bytes count toward the budget for all bodies until the response is written.

    Raises:
        TooLarge: as soon as the body exceeds a limit.
        TooSlow: if the body does not arrive before the deadline.
        Overloaded: if the budget has too few bytes left, or no slot is free in time.
    """
    visit = Visit.of(request)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limits.size:
        raise _too_large(int(declared), limits.size)
    cycle = request.scope.get(CYCLE)
    if cycle is not None and not cycle.more_body and len(cycle.body) <= UNCOUNTED_BYTES and not is_gzip(request):
        return await _read_arrived(request, limits, visit)
    received, values, parts = 0, 0, list[bytes]()
    try:
        async with asyncio.timeout(limits.deadline_s):
            async for part in _unpacked(request, _pieces(request, limits.size), limits.turns):
                received += len(part)
                if received > limits.size:
                    raise _too_large(received, limits.size)
                visit.hold(len(part))
                parts.append(part)
                if received > UNCOUNTED_BYTES:
                    # Values are counted while the body arrives, so that reading stops as soon as there are too many values.
                    values += sum(map(count_values, parts if not values else (part,)))
                    check_values(values, limits.values)
                    await limits.turns.take(visit.client)
    except TimeoutError:
        raise _too_slow(limits.deadline_s) from None
    body = b"".join(parts).removeprefix(BYTE_ORDER_MARK)
    if values:
        check_gone(request)
        visit.hold(VALUE_BYTES * values)
    if not visit.enter_now():
        await visit.enter()
    return body


async def _read_arrived(request: Request, limits: Limits, visit: Visit) -> bytes:
    """Read a short body that has already arrived completely. No deadline is needed, because all bytes are there."""
    body: bytes | None = (await request.receive()).get("body")
    if body is None:
        raise Malformed("the body ended early")
    if len(body) > limits.size:
        raise _too_large(len(body), limits.size)
    visit.hold(len(body))
    if not visit.enter_now():
        await visit.enter()
    return body.removeprefix(BYTE_ORDER_MARK)


async def read_lines(request: Request, limits: Limits, limit: int) -> AsyncIterator[list[bytes]]:
    """Yield the non-blank lines of a body of any length, in batches of up to ``limit`` lines. A batch of long lines has fewer.

    The request holds a slot of the concurrency limit while the caller handles a batch. While it waits for the lines of the
    next batch, the request holds no slot. Only the lines of the current batch and the bytes received last are in memory.

    Raises:
        TooLarge: if a line is too long.
        TooSlow: if the next bytes do not arrive in time.
        Malformed: if the body has no lines. A client that sends a body without rows has probably lost its rows.
    """
    visit = Visit.of(request)
    limit = min(limit, BATCH_LINES)
    lines: list[bytes] = []
    rest, any_line, size = b"", False, 0
    async for part in _unpacked(request, _timed(_pieces(request), limits.deadline_s), limits.turns):
        visit.hold(len(part))
        part = rest + part
        *whole, rest = part.split(b"\n")
        if BYTE_ORDER_MARK in part:
            # If the client concatenated files, byte order marks also occur in the middle of the body.
            whole = [line.removeprefix(BYTE_ORDER_MARK) for line in whole]
        longest = max(map(len, (*whole, rest)))
        if longest > limits.line:
            raise _too_large(longest, limits.line, "line")
        lines += [line for line in whole if line and not line.isspace()]
        size += len(part)
        while len(lines) >= limit or (lines and size >= _BATCH_BYTES):
            any_line = True
            check_gone(request)
            await visit.enter()
            yield lines[:limit]
            visit.leave()
            del lines[:limit]
            size = len(rest) + sum(map(len, lines))
            visit.hold(size - visit.held)
    rest = rest.removeprefix(BYTE_ORDER_MARK)
    if rest and not rest.isspace():
        lines.append(rest)
    if lines:
        await visit.enter()
        yield lines
    elif not any_line:
        raise Malformed("the body holds no row", field="body", value="empty", allowed="one JSON object per line")


def check_gone(request: Request) -> None:
    """Raise Malformed if the client has closed the connection.

    Then the client's rows are not stored, because the client could not read the response.
    """
    gone = request.scope.get(GONE)
    if gone is not None and gone():
        raise Malformed("the client closed the connection before its rows were stored")


async def _pieces(request: Request, limit: int | None = None) -> AsyncIterator[bytes]:
    """Yield the body in chunks, as it was sent. Raise TooLarge if the body has more than ``limit`` bytes."""
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
    """Yield the chunks of ``pieces`` unchanged. Raise TooSlow if the next chunk takes longer than ``deadline_s`` to arrive."""
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
    """Yield the body in chunks, decompressed if it is gzip."""
    unpacker = Gunzip() if is_gzip(request) else None
    async for piece in pieces:
        if unpacker is None:
            yield piece
            continue
        for part in unpacker.feed(piece):
            yield part
            # A small chunk may decompress to many parts. Between the parts, other clients may use the event loop.
            await turns.take(Visit.of(request).client)
    if unpacker is not None:
        unpacker.finish()


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
