"""What routes get out of a request before they call a handler."""

from __future__ import annotations

import re
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from service.context import Context
from service.http.auth import Scope
from service.problems import Invalid
from service.times import parse_time

_KEY: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")


def context(request: Request, scope: Scope | None = None) -> Context:
    """The service; raises Unauthorized or Forbidden when the request may not use ``scope``."""
    parts = cast(Context, request.app.state.context)
    if scope is not None:
        parts.keys.check(request, scope)
    return parts


def video_id(request: Request, parts: Context) -> str:
    """The id in the path, decoded."""
    raw = unquote_to_bytes(request.path_params["video_id"].encode("latin-1"))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Invalid("video_id", repr(raw), "percent-encoded UTF-8") from None
    return parts.videos.identify(text)


def request_key(request: Request) -> str | None:
    """The request's ``Idempotency-Key``, by which a repetition is known; None where it has none."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = ",".join(given)
    if not _KEY.fullmatch(key):
        raise Invalid("Idempotency-Key", key, "1 to 255 printable characters of ASCII, without spaces at the ends")
    # A key is its sender's own: nobody's rows are taken for those of another.
    visit = request.scope.get("m3tr")
    return f"{visit.key.name} {key}" if visit is not None and visit.key is not None else key


def query_time(request: Request, name: str) -> int | None:
    """A time in the query string, as ISO 8601 or as seconds since 1970."""
    text = request.query_params.get(name)
    if text is None:
        return None
    # An unencoded "+" of a zone arrives as a space.
    value: Any = _number(text)
    return parse_time(name, text.replace(" ", "+") if value is None else value)


def query_numbers(request: Request, name: str) -> list[Any] | None:
    """Numbers in the query string, repeated or separated by commas; what is no number stays text, to be refused."""
    texts = [text for part in request.query_params.getlist(name) for text in part.split(",")]
    return [text if (number := _number(text)) is None else number for text in texts] or None


def _number(text: str) -> float | int | None:
    try:
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else float(text)
    except ValueError:
        return None
