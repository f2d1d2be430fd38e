"""Every error that a client can get, as RFC 9457 problem details.

request -> body -> rows -> store -> engine -> response
  |         |       |       |        |
  |         |       |       |        +-- Unavailable  503  the forecast missed its deadline, or the queue is full
  |         |       |       +----------- Unavailable  503  the event store does not answer
  |         |       +------------------- Conflict     409  published_at of a video that already has rows
  |         +--------------------------- Invalid      422  a value that is not allowed: field, value, allowed
  |         +--------------------------- Malformed    400  bytes that are not what the headers declare
  |         +--------------------------- TooLarge     413  body (as sent or unpacked) over its limit
  |         +--------------------------- TooSlow      408  the body did not arrive in time
  |         +--------------------------- WrongMedia   415  content type or encoding
  +------------------------------------- Unauthorized 401, Forbidden 403, NotFound 404, WrongMethod 405
  +------------------------------------- HeadersTooLarge 431, TooSlow 408: a head over its limit
  +------------------------------------- Overloaded 503, OverShare 429: too many requests at once, checked before anything else

Problem
+-- Malformed, Unauthorized, Forbidden, NotFound, WrongMethod, Conflict, TooLarge, HeadersTooLarge, TooSlow, WrongMedia, Invalid
+-- Unavailable            a retry can help: carries Retry-After
|   +-- Overloaded
|       +-- OverShare
+-- DamagedRecord     500  the stored record of this video cannot be read
+-- Internal          500  the service failed; the detail shows nothing internal

A problem is immutable. If several callers wait for what failed, each gets a copy (``Problem.copy``, ``separate``).
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, ClassVar, Self

VALUE_LIMIT = 100


def shown(value: object) -> str:
    """An invalid value as text of at most ``VALUE_LIMIT`` characters that is safe in JSON."""
    text = value if isinstance(value, str) else repr(value) if not isinstance(value, float) else str(value)
    text = text if len(text) <= VALUE_LIMIT else text[: VALUE_LIMIT - 1] + "…"
    return text.encode("utf-8", "backslashreplace").decode()


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """``; did you mean title?`` if a known name is close to this one, otherwise nothing."""
    close = get_close_matches(shown(name).lower(), known, 1)
    return f"; did you mean {close[0]}?" if close else ""


class Problem(Exception):
    """Base class. ``slug`` names the type; ``retryable`` says whether the same request can succeed later.

    ``extra`` holds further members of the response, ``headers`` its headers; both are read-only.
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
        # Python itself sets ``__traceback__`` and the like.
        if not name.startswith("__"):
            raise AttributeError(f"a problem is immutable: {name} cannot be set")
        super().__setattr__(name, value)

    def _set(self, **members: Any) -> None:
        for name, value in members.items():
            super().__setattr__(name, value)

    def copy(self, *, headers: Mapping[str, str] | None = None, **extra: Any) -> Self:
        """A copy with further members and headers."""
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
    """A value that is not allowed; names the field, the value, and what is allowed."""

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
    """A part is down or too slow; the same request can succeed later."""

    slug, title, status, retryable = "unavailable", "Temporarily unavailable", 503, True

    def __init__(
        self, detail: str, *, retry_after_s: int = 1, headers: Mapping[str, str] | None = None, **extra: Any
    ) -> None:
        super().__init__(detail, headers={"Retry-After": str(retry_after_s), **(headers or {})}, **extra)


class Overloaded(Unavailable):
    """More requests than can be served; refused before the request is read."""

    slug, title = "overloaded", "Too busy"


class OverShare(Overloaded):
    """This client already uses its share of what is served at once."""

    slug, title, status = "over-share", "Too many requests at once", 429


class DamagedRecord(Problem):
    """The stored record of one video cannot be read; other videos are not affected."""

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
    """The service itself failed."""

    slug, title, status = "internal", "Internal error", 500


def separate(error: BaseException) -> BaseException:
    """A copy of an exception for one more caller, so that callers do not share its traceback."""
    if isinstance(error, Problem):
        return error.copy()
    try:
        other = copy.copy(error)
    except Exception:
        # It cannot be copied: keep it as the cause.
        other = RuntimeError(f"{type(error).__name__}: {error}")
    other.__cause__ = error
    return other
