"""Request bodies: read within a limit, unpacked, and parsed.

Nothing is read past the limit, neither of what was sent nor of what it unpacks to.
"""

from __future__ import annotations

import asyncio
import json
import zlib
from dataclasses import dataclass
from typing import Any, Final

import orjson
from starlette.requests import ClientDisconnect, Request

from service.problems import Malformed, TooLarge, TooSlow, WrongMedia

JSON: Final = "application/json"
NDJSON: Final = ("application/x-ndjson", "application/ndjson")
_GZIP_WINDOW: Final = 16 + zlib.MAX_WBITS


class BrokenLine(str):
    """A line of NDJSON that is no JSON; stands where its row would be."""


def media_type(request: Request) -> str:
    """The content type without parameters, lower case."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


@dataclass(frozen=True, slots=True)
class Limits:
    """What a body may take: bytes as sent and after unpacking, and seconds to arrive."""

    size: int
    deadline_s: float


async def read_json(request: Request, limits: Limits) -> Any:
    """The body as JSON."""
    kind = media_type(request)
    if kind != JSON:
        raise WrongMedia(f"content type {kind or 'missing'}", field="Content-Type", value=kind, allowed=JSON)
    return parse_json(await read_body(request, limits))


async def read_items(request: Request, limits: Limits) -> list[Any]:
    """The rows of a body: a JSON list, a JSON object ``{"rows": [...]}``, or NDJSON."""
    kind = media_type(request)
    if kind in NDJSON:
        lines = (await read_body(request, limits)).split(b"\n")
        return [_parse_line(line) for line in lines if line.strip()]
    if kind != JSON:
        allowed = ", ".join((JSON, *NDJSON))
        raise WrongMedia(f"content type {kind or 'missing'}", field="Content-Type", value=kind, allowed=allowed)
    body = parse_json(await read_body(request, limits))
    items = body.get("rows") if isinstance(body, dict) and set(body) == {"rows"} else body
    if not isinstance(items, list):
        allowed = 'a list of rows, or an object {"rows": [...]}'
        raise Malformed("the body holds no rows", field="rows", value=type(items).__name__, allowed=allowed)
    return items


async def read_body(request: Request, limits: Limits) -> bytes:
    """The body, unpacked; raises TooLarge as soon as it is known to be, and TooSlow at the deadline."""
    try:
        async with asyncio.timeout(limits.deadline_s):
            return await _read(request, limits.size)
    except TimeoutError:
        problem = TooSlow(f"the body did not arrive within {limits.deadline_s:g} s", field="body")
        problem.headers["Connection"] = "close"
        raise problem from None


async def _read(request: Request, limit: int) -> bytes:
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", "gzip"):
        raise WrongMedia(
            f"content encoding {encoding}", field="Content-Encoding", value=encoding, allowed="gzip, identity"
        )
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > limit:
        raise _too_large(int(declared), limit)
    received, chunks, unpacker = 0, [], _Gunzip(limit) if encoding == "gzip" else None
    try:
        async for chunk in request.stream():
            received += len(chunk)
            if received > limit:
                raise _too_large(received, limit)
            chunks.append(unpacker.feed(chunk) if unpacker else chunk)
    except ClientDisconnect:
        raise Malformed("the body ended early") from None
    if unpacker:
        unpacker.finish()
    return b"".join(chunks)


def parse_json(body: bytes) -> Any:
    """Strict JSON, except that NaN and Infinity are let through to where their field is known, to be refused there."""
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError as error:
        found: list[str] = []

        def constant(name: str) -> float:
            found.append(name)
            return float(name)

        try:
            value = json.loads(body, parse_constant=constant)
        except (ValueError, RecursionError):
            found.clear()
        if not found:
            raise Malformed(f"no valid JSON: {error}") from None
        return value


def _parse_line(line: bytes) -> Any:
    try:
        return parse_json(line)
    except Malformed:
        return BrokenLine(line[:200].decode("utf-8", "replace"))


def _too_large(size: int, limit: int) -> TooLarge:
    problem = TooLarge(
        f"the body has more than {limit} bytes",
        field="body",
        value=f"{size} bytes or more",
        allowed=f"at most {limit} bytes",
    )
    problem.headers["Connection"] = "close"
    return problem


class _Gunzip:
    """Unpacks gzip members one after the other, never past the limit."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._unpacked = 0
        self._member = zlib.decompressobj(_GZIP_WINDOW)
        self._begun = False

    def feed(self, data: bytes) -> bytes:
        out = bytearray()
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(_GZIP_WINDOW)
            self._begun = True
            room = self._limit - self._unpacked
            try:
                part = self._member.decompress(data, room + 1)
            except zlib.error as error:
                raise Malformed(
                    f"broken gzip: {error}", field="body", value="gzip", allowed="a whole gzip stream"
                ) from None
            self._unpacked += len(part)
            if self._unpacked > self._limit:
                raise _too_large(self._unpacked, self._limit)
            out += part
            data = self._member.unconsumed_tail or self._member.unused_data
        return bytes(out)

    def finish(self) -> None:
        if not self._begun or not self._member.eof:
            raise Malformed("broken gzip: it ends early", field="body", value="gzip", allowed="a whole gzip stream")
