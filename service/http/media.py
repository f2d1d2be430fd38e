"""Checks the content type and the content encoding of a request."""

from __future__ import annotations

from typing import Final

from starlette.requests import Request

from service.problems import WrongMedia, shown

JSON: Final = "application/json"
NDJSON: Final = ("application/x-ndjson", "application/ndjson")
_GZIP: Final = ("gzip", "x-gzip")


def media_type(request: Request) -> str:
    """Return the content type in lower case, without parameters."""
    return request.headers.get("content-type", "").partition(";")[0].strip().lower()


def check_media(request: Request, *allowed: str) -> str:
    """Return the content type. Raise WrongMedia if it is not one of ``allowed``."""
    kind = media_type(request)
    if kind not in allowed:
        raise WrongMedia(
            f"wrong content type: {kind or 'missing'}", field="Content-Type", value=kind, allowed=", ".join(allowed)
        )
    return kind


def is_lines(request: Request) -> bool:
    """Return True if the body is NDJSON, and False if it is JSON. Raise WrongMedia if it is neither."""
    return check_media(request, JSON, *NDJSON) in NDJSON


def is_gzip(request: Request) -> bool:
    """Return whether the body is gzip. Raise WrongMedia for any other encoding, or for several encodings."""
    if "content-encoding" not in request.headers:
        return False
    given = ",".join(request.headers.getlist("content-encoding"))
    encodings = [name for name in (part.strip().lower() for part in given.split(",")) if name not in ("", "identity")]
    if encodings and (len(encodings) > 1 or encodings[0] not in _GZIP):
        raise WrongMedia(
            f"content encoding {shown(given)}", field="Content-Encoding", value=shown(given), allowed="gzip, identity"
        )
    return bool(encodings)
