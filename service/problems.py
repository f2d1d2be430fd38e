"""Every error that a client can get, as RFC 9457 problem details.

The diagram shows the step of a request at which each problem is raised.

request -> body -> rows -> store -> engine -> response
  |         |       |       |        |
  |         |       |       |        +-- Unavailable  503  the forecast missed its deadline, or the queue is full
  |         |       |       +----------- Unavailable  503  the event store does not answer
  |         |       +------------------- Conflict     409  a different published_at for a video that already has rows
  |         +--------------------------- Invalid      422  a value that is not allowed: field, value, allowed
  |         +--------------------------- Malformed    400  bytes that are not what the headers declare
  |         +--------------------------- TooLarge     413  body over its limit, either as sent or decompressed
  |         +--------------------------- TooSlow      408  the body did not arrive in time
  |         +--------------------------- WrongMedia   415  content type or encoding
  +------------------------------------- Unauthorized 401, Forbidden 403, NotFound 404, WrongMethod 405
  +------------------------------------- HeadersTooLarge 431: the request's head is over its size limit
  +------------------------------------- TooSlow 408: the request's head did not arrive in time
  +------------------------------------- Overloaded 503, OverShare 429: too many requests at once, checked before anything else

Class hierarchy:

Problem
+-- Malformed, Unauthorized, Forbidden, NotFound, WrongMethod, Conflict, TooLarge, HeadersTooLarge, TooSlow, WrongMedia, Invalid
+-- Unavailable            a retry can help; the response has Retry-After
|   +-- Overloaded
|       +-- OverShare
+-- DamagedRecord     500  the stored record of this video cannot be read
+-- Internal          500  the service failed; the detail reveals nothing internal

A problem is immutable. If several callers wait for an operation that fails, each caller gets its own copy (see ``Problem.copy`` and
``separate``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, ClassVar, Self

VALUE_LIMIT = 100


def shown(value: object) -> str:
    """Convert an invalid value to text of at most ``VALUE_LIMIT`` characters that can be encoded as JSON."""
    text = value if isinstance(value, str) else repr(value) if not isinstance(value, float) else str(value)
    text = text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return ``; did you mean title?`` if a known name resembles ``name``, otherwise an empty string."""
    close = get_close_matches(shown(name).lower(), known, 1)
    return f"; did you mean {close[0]}?" if close else ""


class Problem(Exception):
    """Base class of all problems.

    ``slug``: names the problem's type.
    ``retryable``: whether a repeated request can succeed later.
    ``extra``: further members of the response body, read-only.
    ``headers``: headers of the response, read-only.
    """

    slug: ClassVar[str] = "problem"
    title: ClassVar[str] = "Problem"
    status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False

    detail: str
    extra: Mapping[str, Any]
    headers: Mapping[str, str]

    def __init__(self, detail: str, *, headers: Mapping[str, str] | None = None, **extra: Any) -> None:
        super().__init__(detail)
        self._set(detail=detail, extra=MappingProxyType(extra), headers=MappingProxyType(dict(headers or {})))

    def __setattr__(self, name: str, value: object) -> None:
        # Python itself sets attributes that begin with two underscores, such as ``__traceback__``.
        if not name.startswith("__"):
            raise AttributeError(f"a problem is immutable: {name} cannot be set")
        super().__setattr__(name, value)

    def _set(self, **members: Any) -> None:
        for name, value in members.items():
            super().__setattr__(name, value)

    def copy(self, *, headers: Mapping[str, str] | None = None, **extra: Any) -> Self:
        """Return a copy with additional members and headers."""
        other = type(self).__new__(type(self), *self.args)
        members = {**self.__dict__, "extra": MappingProxyType({**self.extra, **extra})}
        other._set(**members | {"headers": MappingProxyType({**self.headers, **(headers or {})})})
        return other

    def body(self) -> dict[str, Any]:
        """Return the members of the problem+json response body."""
        return {
            "type": f"urn:m3tr:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "retryable": self.retryable,
            **self.extra,
        }


class Malformed(Problem):
    """The body cannot be decoded, because it is invalid JSON or invalid gzip, or because it ends early."""

    slug, title, status = "malformed", "Malformed request", 400


class Unauthorized(Problem):
    """The request has no API key, or an unknown one."""

    slug, title, status = "unauthorized", "API key needed", 401

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Problem):
    """The API key lacks the scope that the route needs."""

    slug, title, status = "forbidden", "Scope missing", 403


class NotFound(Problem):
    """The route or the video is unknown."""

    slug, title, status = "not-found", "Not found", 404


class WrongMethod(Problem):
    """The route exists, but not with this method."""

    slug, title, status = "method-not-allowed", "Method not allowed", 405


class Conflict(Problem):
    """The request contradicts the stored data."""

    slug, title, status = "conflict", "Conflict", 409


class TooLarge(Problem):
    """The body is over the size limit, either as sent or after decompression."""

    slug, title, status = "too-large", "Body too large", 413


class HeadersTooLarge(Problem):
    """The head of the request is over the size limit."""

    slug, title, status = "headers-too-large", "Head too large", 431


class WrongMedia(Problem):
    """The content type or content encoding is not supported."""

    slug, title, status = "unsupported-media-type", "Unsupported media type", 415


class Invalid(Problem):
    """A value is not allowed. The problem names the field, the value, and the allowed values."""

    slug, title, status = "invalid-value", "Value not allowed", 422
    field: str
    value: str
    allowed: str

    def __init__(self, field: str, value: object, allowed: str, **extra: Any) -> None:
        field, text = shown(field), shown(value)
        members = {"field": field, "value": text, "allowed": allowed}
        super().__init__(f"{field}: {text} is not allowed; allowed is {allowed}", **members | extra)
        self._set(**members)


class TooSlow(Problem):
    """The head or the body of the request did not arrive in time."""

    slug, title, status, retryable = "timeout", "Request too slow", 408, True


class Unavailable(Problem):
    """A component is down or too slow. A repeated request can succeed later."""

    slug, title, status, retryable = "unavailable", "Temporarily unavailable", 503, True

    def __init__(
        self, detail: str, *, retry_after_s: int = 1, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s), **(headers or {})}, **extra)


class Overloaded(Unavailable):
    """There are more requests than the service can handle. The refused request is not read."""

    slug, title = "overloaded", "Too busy"


class OverShare(Overloaded):
    """The client already uses its full share of the requests that may be in progress at once."""

    slug, title, status = "over-share", "Too many requests at once", 429


class DamagedRecord(Problem):
    """The stored record of one video cannot be read. Other videos are not affected."""

    slug, title, status = "damaged-record", "Damaged record", 500

    def __init__(self, video_id: str, why: str) -> None:
        super().__init__(
            f"the stored record of this video cannot be read ({why}); DELETE /videos/{{video_id}} deletes it,"
            " and then it can be registered again",
            field="video_id",
            value=shown(video_id),
            reason="damaged",
        )


class Internal(Problem):
    """The service itself failed."""

    slug, title, status = "internal", "Internal error", 500


def separate(error: BaseException) -> BaseException:
    """Return a copy of an exception for a further caller, so that callers do not share a traceback."""
    if isinstance(error, Problem):
        return error.copy()
    try:
        other = copy.copy(error)
    except Exception:
        # The exception cannot be copied. Return a RuntimeError with the same text, whose cause is the original.
        other = RuntimeError(f"{type(error).__name__}: {error}")
    other.__cause__ = error
    return other
