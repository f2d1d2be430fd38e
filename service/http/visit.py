"""A request on its way through the service: who sent it, its id, and what it holds of what all share."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable
from contextvars import ContextVar
from itertools import count
from typing import TYPE_CHECKING, Any, Final, cast

from starlette.requests import HTTPConnection
from starlette.types import Scope

from service.problems import Problem

if TYPE_CHECKING:
    from service.http.auth import Key
    from service.http.budget import Budget
    from service.http.concurrency import ConcurrencyLimit, Refusal

REQUEST_ID: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Id of the request that is being answered, for the log."""
GONE: Final = "m3tr.gone"
"""Key of the scope under which a connection tells whether its client has left."""
CYCLE: Final = "m3tr.cycle"
"""Key of the scope under which what has come of the body is found: ``body``, and whether there is ``more_body``."""
_SANE: Final = re.compile(rb"[A-Za-z0-9._:/+=@-]{1,128}")
_FIRST: Final = secrets.token_hex(6)
_NEXT: Final = count(1)
_UNKNOWN: Final = 2**63


class Visit:
    """What the head says, found in one pass, and what is held until ``close``.

    ``length``: bytes of the body that may still come; very many where the head does not say, or the client waits for a word.
    ``client``: whose share is counted: the known key, or the ``address``. ``note``: what it changed, for the audit log.
    """

    __slots__ = (
        "_budget",
        "_gate",
        "_held",
        "_inside",
        "_refused",
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
                    if self.length != _UNKNOWN:
                        self.length = int(value) if value.isdigit() and len(value) < 19 else _UNKNOWN
                case b"transfer-encoding" | b"expect":
                    self.length = _UNKNOWN
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
        self.request_id = asked.decode() if asked and _SANE.fullmatch(asked) else f"{_FIRST}-{next(_NEXT):x}"
        self._gate: ConcurrencyLimit | None = None
        self._budget: Budget | None = None
        self._refused: Callable[[Refusal], Problem] | None = None
        self._held = 0
        self._inside = False

    @staticmethod
    def of(connection: HTTPConnection) -> Visit:
        """The visit of a request."""
        return cast(Visit, connection.scope["m3tr"])

    def limit(self, gate: ConcurrencyLimit | None, budget: Budget, refused: Callable[[Refusal], Problem]) -> None:
        """Say what it takes its place and its bytes from; ``gate`` None: it needs no place."""
        self._gate, self._budget, self._refused = gate, budget, refused

    def enter_now(self) -> bool:
        """Take a place that is free; False where one has to be waited for, or none is to be had."""
        if not self._inside and self._gate is not None:
            self._inside = self._gate.take(self.client)
            return self._inside
        return True

    async def enter(self) -> None:
        """Take a place, once what the client has to say is here; raises Overloaded or OverShare."""
        gate = self._gate
        if gate is None or self.enter_now():
            return
        refusal = gate.refusal(self.client)
        if refusal is None and not await gate.enter(self.client):
            refusal = "late"
        if refusal is not None:
            assert self._refused is not None
            raise self._refused(refusal)
        self._inside = True

    def leave(self) -> None:
        """Give the place back: nothing is left to do but what the client's line takes."""
        if self._inside:
            assert self._gate is not None
            self._inside = False
            self._gate.leave(self.client)

    @property
    def held(self) -> int:
        """Bytes held."""
        return self._held

    def hold(self, size: int) -> None:
        """Hold bytes of the body, or with a negative number give some back; raises Overloaded or OverShare."""
        budget = self._budget
        if budget is None:
            return
        if size > 0:
            budget.take(self.client, size)
        else:
            budget.give(self.client, -size)
        self._held += size

    def close(self) -> None:
        """Give everything back."""
        self.leave()
        if self._held:
            self.hold(-self._held)
