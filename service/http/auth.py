"""Checks API keys. The service only knows the SHA-256 and the scopes of each key.

ingest    allows sending rows and registering videos
predict   allows forecasts and reading stored data
admin     allows everything, including deletion
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Callable, Iterable
from typing import Final, Literal, cast

from starlette.requests import HTTPConnection

from service.http.api_key import Key
from service.http.visit import Visit
from service.problems import Forbidden, Unauthorized

Scope = Literal["ingest", "predict", "admin"]
Refusal = Literal["missing", "unknown", "scope"]
"""Why a request is refused.

``missing``: no key was sent.
``unknown``: the key is not known.
``scope``: the key lacks the required scope.
"""
_NAME_DIGITS: Final = 8


class Keys:
    """The accepted keys. If there are no keys, every request is allowed, and the service only listens on loopback."""

    def __init__(self, keys: Iterable[str], refused: Callable[[Refusal], None] = lambda reason: None) -> None:
        scopes: dict[str, set[str]] = {}
        for key in keys:
            scope, _, digest = key.partition(":")
            scopes.setdefault(digest, set()).add(scope)
        self._keys = [(digest, Key(digest[:_NAME_DIGITS], frozenset(held))) for digest, held in scopes.items()]
        self._refused = refused

    def __bool__(self) -> bool:
        return bool(self._keys)

    def find(self, presented: str | None) -> Key | None:
        """Return the known key that a request presented. Return None if it presented no known key."""
        if presented is None or not self._keys:
            return None
        digest = hashlib.sha256(presented.encode("utf-8", "surrogateescape")).hexdigest()
        # All keys are compared, so the duration of the comparison does not reveal which key matched.
        matching = [key for known, key in self._keys if hmac.compare_digest(known, digest)]
        return matching[0] if matching else None

    def check(self, request: HTTPConnection, scope: Scope) -> None:
        """Raise Unauthorized if the request has no known key. Raise Forbidden if the key lacks ``scope``."""
        if not self._keys:
            return
        visit = cast(Visit, request.scope["m3tr"])
        if visit.presented is None:
            self._refused("missing")
            raise Unauthorized("send an API key: Authorization: Bearer KEY, or X-API-Key: KEY")
        if visit.key is None:
            self._refused("unknown")
            raise Unauthorized("this API key is not known")
        if scope not in visit.key.scopes and "admin" not in visit.key.scopes:
            self._refused("scope")
            raise Forbidden(f"this API key lacks the scope {scope}", allowed=scope)
