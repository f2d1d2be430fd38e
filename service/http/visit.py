"""The state of one request while it is handled: its client, its id, and how much of the shared limits it uses."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from typing import Any, Final, cast

from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.http.api_key import Key
from service.http.budget import Budget
from service.http.concurrency import ConcurrencyLimit, Refusal
from service.problems import Problem

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the current request, for log messages."""
GONE: Final = "m3tr.gone"
"""Key in the ASGI scope. Its value is a function that returns whether the client has closed the connection."""
CYCLE: Final = "m3tr.cycle"
"""Key in the ASGI scope. Its value is an object with two fields.

``body``: the bytes of the body received so far.
``more_body``: whether more bytes will come.
"""
_VALID_ID: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_ID_PREFIX: Final = secrets.token_hex(6)
_ID_NUMBERS: Final = count(1)
_UNKNOWN_LENGTH: Final = 2**63


class Visit:
    """The data in a request's head, and how much of the shared limits the request uses until ``close``.

    ``length``: the body's length in bytes. The value is very large if the head does not contain the length, or if the client waits
    for a 100 response before it sends the body.
    ``client``: the name that identifies the client. This is the name of the API key if the key is known, else the address. Each
    client has a share of the limits.
    ``note``: what the request changed, for the audit log.
    """

    __slots__ = (
        "_budget",
        "_concurrency",
        "_held",
        "_refused",
        "_running",
        "address",
        "client",
        "host",
        "key",
        "length",
        "note",
        "origin",
        "presented",
        "request_id",
    )

    def __init__(self, scope: Scope) -> None:
        self.presented: str | None = None
        self.host = self.origin = b""
        self.key: Key | None = None
        self.address = str((scope.get("client") or ("",))[0])
        self.client = b""
        self.note: dict[str, Any] | None = None
        self.length = 0
        asked = other = b""
        for name, value in scope["headers"]:
            match name:
                case b"host":
                    self.host = value
                case b"content-length":
                    if self.length != _UNKNOWN_LENGTH:
                        self.length = int(value) if value.isdigit() and len(value) < 19 else _UNKNOWN_LENGTH
                case b"transfer-encoding" | b"expect":
                    self.length = _UNKNOWN_LENGTH
                case b"x-request-id":
                    asked = value
                case b"authorization":
                    scheme, _, token = value.decode("latin-1").partition(" ")
                    if scheme.lower() == "bearer" and token:
                        self.presented = token.strip()
                case b"x-api-key":
                    other = value
                case b"origin":
                    self.origin = value
        if self.presented is None and other:
            self.presented = other.decode("latin-1")
        self.request_id = (
            asked.decode() if asked and _VALID_ID.fullmatch(asked) else f"{_ID_PREFIX}-{next(_ID_NUMBERS):x}"
        )
        self._concurrency: ConcurrencyLimit | None = None
        self._budget: Budget | None = None
        self._refused: Callable[[Refusal], Problem] | None = None
        self._held = 0
        self._running = False

    @staticmethod
    def of(connection: HTTPConnection) -> Visit:
        """Return the ``Visit`` of a request."""
        return cast(Visit, connection.scope["m3tr"])

    def set_limits(
        self, concurrency: ConcurrencyLimit | None, budget: Budget, refused: Callable[[Refusal], Problem]
    ) -> None:
        """Set the limits that apply to the request.

        Args:
            concurrency: the concurrency limit. If None, the request needs no slot.
            budget: the budget for the bytes of bodies.
            refused: creates the error for a request that the concurrency limit refuses.
        """
        self._concurrency, self._budget, self._refused = concurrency, budget, refused

    def enter_now(self) -> bool:
        """Take a slot if one is free. Return False if the request must wait for one, or is refused."""
        if not self._running and self._concurrency is not None:
            self._running = self._concurrency.take(self.client)
            return self._running
        return True

    async def enter(self) -> None:
        """Take a slot, or wait for one. Call this after the body has arrived. Raise Overloaded or OverShare if there is none."""
        concurrency = self._concurrency
        if concurrency is None or self.enter_now():
            return
        refusal = concurrency.refusal(self.client)
        if refusal is None and not await concurrency.enter(self.client):
            refusal = "late"
        if refusal is not None:
            assert self._refused is not None
            raise self._refused(refusal)
        self._running = True

    def leave(self) -> None:
        """Release the slot, because only the response remains to be sent."""
        if self._running:
            assert self._concurrency is not None
            self._running = False
            self._concurrency.leave(self.client)

    @property
    def held(self) -> int:
        """Number of bytes of the budget that the request holds."""
        return self._held

    def hold(self, size: int) -> None:
        """Hold ``size`` more bytes of the budget. If ``size`` is negative, release bytes.

        Raise Overloaded or OverShare if the budget has too few bytes left.
        """
        budget = self._budget
        if budget is None:
            return
        if size > 0:
            budget.take(self.client, size)
        else:
            budget.give(self.client, -size)
        self._held += size

    def close(self) -> None:
        """Release the slot and all bytes."""
        self.leave()
        if self._held:
            self.hold(-self._held)
