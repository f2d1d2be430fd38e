"""API keys: known by their SHA-256 only, each with a scope.

ingest    rows and registrations
predict   forecasts and reading back
admin     everything, deletion included
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from typing import Literal

from starlette.requests import HTTPConnection

from service.problems import Forbidden, Unauthorized

Scope = Literal["ingest", "predict", "admin"]


class Keys:
    """Accepted keys; without any, every request is allowed (the service then listens on loopback only)."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._keys: list[tuple[str, str]] = []
        for key in keys:
            scope, _, digest = key.partition(":")
            self._keys.append((digest, scope))

    def check(self, request: HTTPConnection, scope: Scope, presented: str | None = None) -> None:
        """Raise Unauthorized without a known key, Forbidden when the key lacks ``scope``.

        A key in the headers comes before one ``presented`` otherwise.
        """
        if not self._keys:
            return
        presented = _presented(request) or presented
        if presented is None:
            raise Unauthorized("send an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
        # Every key is compared, so the time taken says nothing about which one matched.
        scopes = {held for known, held in self._keys if hmac.compare_digest(known, digest)}
        if not scopes:
            raise Unauthorized("this API key is not known")
        if scope not in scopes and "admin" not in scopes:
            raise Forbidden(f"this API key lacks the scope {scope}", allowed=scope)


def _presented(request: HTTPConnection) -> str | None:
    scheme, _, token = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer" and token:
        return token.strip()
    return request.headers.get("x-api-key")
