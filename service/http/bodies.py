"""Reading request bodies: within a limit of bytes and time, unpacked, whole or line by line.

Nothing is read past the limit, neither of the bytes that were sent nor of what they unpack to. NDJSON as a whole has no limit:
it is handled in batches while it arrives.
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
"""Lines of NDJSON that are stored together. They take some milliseconds of this process and of the store."""
_BATCH_BYTES: Final = 2 * 2**20
"""Approximate bytes of lines that are handled together."""
_CLOSE: Final = {"Connection": "close"}


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a body: bytes as sent and after unpacking, and seconds to arrive.

    ``values``: how many JSON values one body may hold, because they decide the time (which stops all other requests) and the
    memory that parsing takes. Of NDJSON, ``line`` limits the bytes of a line, and ``deadline_s`` the wait for the next bytes.
    """

    size: int
    line: int
    deadline_s: float
    values: int = 250_000
    turns: Turns = field(default_factory=Turns)


async def read_json(request: Request, limits: Limits) -> Any:
    """The body as JSON."""
    check_media(request, JSON)
    return parse_json(await read_body(request, limits))


async def read_body(request: Request, limits: Limits) -> bytes:
    """The unpacked body; raises TooLarge as soon as it must be, and TooSlow at the deadline.

    Its bytes count in the budget until the response is written. When this returns, the request holds its slot of the concurrency
    limit.
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
                    # Counted while it arrives, so that no more is read than is needed to refuse it.
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
    """A short body that has arrived completely: nothing has to be waited for."""
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
    """The non-blank lines of a body of any length, in batches of ``limit`` lines, or fewer where lines are long.

    The request holds a slot of the concurrency limit while a batch is handled, and not while it waits for the next one. Only
    the lines of the batch and the newest bytes are in memory.

    Raises:
        TooLarge: a line is too long.
        TooSlow: the next bytes do not come in time.
        Malformed: no line comes at all: a client that announces rows and sends none has lost them.
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
            # Concatenated files have one in the middle as well.
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
        raise Malformed("the body holds no row", field="body", value="empty", allowed="one JSON object a line")


def check_gone(request: Request) -> None:
    """Raise Malformed where the client has left: its rows are not worth storing, as it will not read the response."""
    gone = request.scope.get(GONE)
    if gone is not None and gone():
        raise Malformed("the client left before its rows were stored")


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
    """The pieces, unpacked where the body is gzip."""
    unpacker = Gunzip() if is_gzip(request) else None
    async for piece in pieces:
        if unpacker is None:
            yield piece
            continue
        for part in unpacker.feed(piece):
            yield part
            # A small piece may unpack to many parts: other clients get a turn between them.
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
