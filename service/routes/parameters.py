"""Reads the parameters, headers and API key of a request, before a route calls a handler."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Final, cast
from urllib.parse import unquote_to_bytes

from starlette.requests import Request

from service.context import Context
from service.http.auth import Scope
from service.http.visit import Visit
from service.problems import Invalid, did_you_mean
from service.times import parse_time

_KEY: Final = re.compile(r"[!-~](?:[ -~]{0,253}[!-~])?")
_INDEX: Final = re.compile(r"\[\d{0,6}\]$")


def context_of(request: Request) -> Context:
    """Return the context of the service that handles a request."""
    return cast(Context, request.app.state.context)


def authorize(request: Request, scope: Scope, query: Sequence[str] = ()) -> Context:
    """Check that a request may use ``scope`` and has only the query parameters ``query``. Return the service's context.

    Raises Unauthorized or Forbidden if the API key does not allow the request, and Invalid for the first unknown query parameter.
    """
    context = context_of(request)
    context.keys.check(request, scope)
    if request.scope["query_string"]:
        _check_query(request, query)
    return context


def _check_query(request: Request, known: Sequence[str]) -> None:
    for name, value in request.query_params.multi_items():
        if name not in known and _without_index(name) not in known:
            # The value may be a secret in the wrong place, so do not show it.
            shown = "a key" if name == "api_key" else value
            allowed = f"the parameters {', '.join(known)}" if known else "no parameter"
            raise Invalid(name, shown, allowed + did_you_mean(_without_index(name), known))


def _without_index(name: str) -> str:
    """Return a parameter's name without a list index. Some clients send ``horizons_s[]`` or ``horizons_s[0]`` for ``horizons_s``."""
    return _INDEX.sub("", name)


def key_name(request: Request) -> str:
    """Return the name of the request's API key, or "" without a key."""
    key = Visit.of(request).key
    return "" if key is None else key.name


def video_id(request: Request, context: Context) -> str:
    """Return the decoded video id from the path."""
    raw = unquote_to_bytes(request.path_params["video_id"].encode("latin-1"))
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        raise Invalid("video_id", repr(raw), "percent-encoded UTF-8") from None
    return context.videos.identify(text)


def request_key(request: Request) -> str | None:
    """Return the request's ``Idempotency-Key``, which identifies repetitions of the request, or None without a key."""
    given = request.headers.getlist("idempotency-key")
    if not given:
        return None
    key = ",".join(given)
    if not _KEY.fullmatch(key):
        raise Invalid("Idempotency-Key", key, "1 to 255 printable characters of ASCII, without spaces at the ends")
    # Prefix the value with the API key's name, so that clients that choose the same value do not collide.
    visit = request.scope.get("m3tr")
    return f"{visit.key.name} {key}" if visit is not None and visit.key is not None else key


def query_text(request: Request, name: str) -> str | None:
    """Return a query parameter that may be given at most once, or None if the parameter is missing."""
    texts = request.query_params.getlist(name)
    if len(texts) > 1:
        raise Invalid(name, ", ".join(texts), "one value")
    return texts[0] if texts else None


def query_time(request: Request, name: str) -> int | None:
    """Return a time from the query string in microseconds since 1970 UTC, or None if the parameter is missing.

    The time is given as ISO 8601 or as seconds since 1970.
    """
    text = query_text(request, name)
    if text is None:
        return None
    # An unencoded "+" of a time zone arrives as a space.
    value: Any = _number(text)
    return parse_time(name, text.replace(" ", "+") if value is None else value)


def query_numbers(request: Request, name: str) -> list[Any] | None:
    """Return a list of numbers from the query string, or None if the parameter is missing.

    A client may repeat the parameter, repeat it as ``name[]``, or separate the numbers by commas. Text that is not a number is kept as
    text and refused later.
    """
    texts = _query_texts(request, name)
    return [text if (number := _number(text)) is None else number for text in texts] or None


def query_names(request: Request, name: str) -> list[Any] | None:
    """Return a list of names from the query string, given as ``query_numbers`` says, or None if the parameter is missing."""
    texts = _query_texts(request, name)
    return texts or None


def _query_texts(request: Request, name: str) -> list[Any]:
    given = [value for key, value in request.query_params.multi_items() if key == name or _without_index(key) == name]
    return [text for part in given for text in part.split(",")]


def _number(text: str) -> float | int | None:
    try:
        return int(text) if text.isascii() and text.isdecimal() and len(text) < 19 else float(text)
    except ValueError:
        return None
