"""Every error a client can meet, as RFC 9457 problem details.

request -> body -> rows -> store -> engine -> answer
  |         |       |       |        |
  |         |       |       |        +-- Unavailable  503  the forecast missed its deadline, or the queue is full
  |         |       |       +----------- Unavailable  503  the event store does not answer
  |         |       +------------------- Conflict     409  published_at of a video that already has rows
  |         +--------------------------- Invalid      422  a value that is not allowed: field, value, allowed
  |         +--------------------------- Malformed    400  bytes that are not what they claim to be
  |         +--------------------------- TooLarge     413  body (as sent or unpacked) over its limit
  |         +--------------------------- TooSlow      408  the body did not arrive in time
  |         +--------------------------- WrongMedia   415  content type or encoding
  +------------------------------------- Unauthorized 401, Forbidden 403, NotFound 404, WrongMethod 405
  +------------------------------------- HeadersTooLarge 431, TooSlow 408: a head over its limit
  +------------------------------------- Overloaded 503, OverShare 429: too much at once, before anything else

Problem
+-- Malformed, Unauthorized, Forbidden, NotFound, WrongMethod, Conflict, TooLarge, HeadersTooLarge, TooSlow, WrongMedia, Invalid
+-- Unavailable            a retry can help: carries Retry-After
|   +-- Overloaded
|       +-- OverShare
+-- DamagedRecord     500  what is stored of this one video cannot be read
+-- Internal          500  a fault of ours; the detail says nothing about the inside

A problem never changes once it is made: several may be told of one cause, each by a copy (``Problem.copy``, ``separate``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, ClassVar, Self

VALUE_LIMIT = 100


def shown(value: object) -> str:
    """The offending value as text of at most ``VALUE_LIMIT`` characters, safe to put into JSON."""
    text = value if isinstance(value, str) else repr(value) if not isinstance(value, float) else str(value)
    text = text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean title?`` where one of the known names is close to a mistyped one, else nothing."""
    close = get_close_matches(shown(name).lower(), known, 1)
    return f"; did you mean {close[0]}?" if close else ""


class Problem(Exception):
    """Base of all; ``slug`` names the type, ``retryable`` says whether the same request can succeed later.

    ``extra`` holds further members of the answer, ``headers`` its headers; neither can be written to.
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
        # Python itself notes where an exception was raised (``__traceback__`` and the like).
        if not name.startswith("__"):
            raise AttributeError(f"a problem does not change: {name} cannot be set")
        super().__setattr__(name, value)

    def _set(self, **members: Any) -> None:
        for name, value in members.items():
            super().__setattr__(name, value)

    def copy(self, *, headers: Mapping[str, str] | None = None, **extra: Any) -> Self:
        """The same problem as an object of its own, with further members and headers."""
        other = type(self).__new__(type(self), *self.args)
        members = {**self.__dict__, "extra": MappingProxyType({**self.extra, **extra})}
        other._set(**members | {"headers": MappingProxyType({**self.headers, **(headers or {})})})
        return other

    def body(self) -> dict[str, Any]:
        """The problem+json members."""
        return {
            "type": f"urn:m3tr:problem:{self.slug}",
            "title": self.title,
            "status": self.status,
            "detail": self.detail,
            "retryable": self.retryable,
            **self.extra,
        }


class Malformed(Problem):
    """Broken JSON, broken gzip, a body that ends early."""

    slug, title, status = "malformed", "Malformed request", 400


class Unauthorized(Problem):
    """No API key, or one that is not known."""

    slug, title, status = "unauthorized", "API key needed", 401

    def __init__(self, detail: str) -> None:
        super().__init__(detail, headers={"WWW-Authenticate": "Bearer"})


class Forbidden(Problem):
    """The key lacks a scope."""

    slug, title, status = "forbidden", "Scope missing", 403


class NotFound(Problem):
    """An unknown route or video."""

    slug, title, status = "not-found", "Not found", 404


class WrongMethod(Problem):
    """A known route with another method."""

    slug, title, status = "method-not-allowed", "Method not allowed", 405


class Conflict(Problem):
    """The request contradicts what is stored."""

    slug, title, status = "conflict", "Conflict", 409


class TooLarge(Problem):
    """The body is over the limit, as sent or after unpacking."""

    slug, title, status = "too-large", "Body too large", 413


class HeadersTooLarge(Problem):
    """The head of a request is over the limit."""

    slug, title, status = "headers-too-large", "Head too large", 431


class WrongMedia(Problem):
    """A content type or content encoding that is not served."""

    slug, title, status = "unsupported-media-type", "Unsupported media type", 415


class Invalid(Problem):
    """A value that is not allowed; names the field, shows the value, says what is allowed."""

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
    """The body did not arrive in time."""

    slug, title, status, retryable = "timeout", "Body too slow", 408, True


class Unavailable(Problem):
    """A part is down or late; the same request can succeed later."""

    slug, title, status, retryable = "unavailable", "Temporarily unavailable", 503, True

    def __init__(
        self, detail: str, *, retry_after_s: int = 1, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s), **(headers or {})}, **extra)


class Overloaded(Unavailable):
    """More requests than can be served; refused before anything was read of it."""

    slug, title = "overloaded", "Too busy"


class OverShare(Overloaded):
    """This client holds its share of what is served at once."""

    slug, title, status = "over-share", "Too many requests at once", 429


class DamagedRecord(Problem):
    """What is stored of one video cannot be read; nothing else is touched by it."""

    slug, title, status = "damaged-record", "Damaged record", 500

    def __init__(self, video_id: str, why: str) -> None:
        super().__init__(
            f"what is stored of this video cannot be read ({why}); DELETE /videos/{{video_id}} forgets it,"
            " and then it can be registered again",
            field="video_id",
            value=shown(video_id),
            reason="damaged",
        )


class Internal(Problem):
    """A fault of the service itself."""

    slug, title, status = "internal", "Internal error", 500


def separate(error: BaseException) -> BaseException:
    """An exception like ``error`` for one more who waits for what failed; nobody shares what Python writes into it."""
    if isinstance(error, Problem):
        return error.copy()
    try:
        other = copy.copy(error)
    except Exception:
        # One that cannot be made from its arguments: it stays the cause.
        other = RuntimeError(f"{type(error).__name__}: {error}")
    other.__cause__ = error
    return other
