"""What routes get out of a request before they call a handler."""

from __future__ import annotations

from typing import Any, cast
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from service.context import Context
from service.http.auth import Scope
from service.problems import Invalid
from service.times import parse_time


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
