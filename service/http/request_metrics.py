"""An ASGI layer around the router. It measures every request, writes the audit log, and handles unexpected exceptions."""

from __future__ import annotations

import time
from typing import Final

import structlog
from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.http.audit import Audit
from service.http.responses import problem_response
from service.http.visit import Visit
from service.metrics import Metrics
from service.problems import Internal

log = structlog.get_logger(__name__)

_CHANGING: Final = frozenset(("POST", "PUT", "DELETE"))
_PATH_SHOWN: Final = 300
_METHODS: Final = frozenset(("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS"))


class RequestMetrics:
    """Counts and times requests for each route template. All unknown routes share one label, and so do all unknown methods.

    The layer also writes the audit log. If no other layer handles an exception, this layer logs the exception and sends an error
    response. The connection then stays open.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, audit: Audit) -> None:
        self._app = app
        self._metrics, self._audit = metrics, audit
        self._known: dict[tuple[str, str, int], tuple[Counter, Histogram]] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        responded: float | None = None
        # Every route for GET also handles HEAD. The server then leaves out the body (RFC 9110 9.1).
        routed = {**scope, "method": "GET", "head": True} if scope["method"] == "HEAD" else scope
        status: int | None = None

        async def send_and_note(message: Message) -> None:
            nonlocal responded, status
            if message["type"] == "http.response.start":
                # The measured time ends when the response's head is sent. How long a client reads a stream says nothing about the service.
                responded, status = time.perf_counter(), message["status"]
            await send(message)

        try:
            await self._app(routed, receive, send_and_note)
        except Exception:
            log.exception("a request failed", method=scope["method"], path=scope["path"][:_PATH_SHOWN])
            if status is not None:
                raise
            problem = Internal("the service failed; its log has the reason")
            await problem_response(problem, scope["m3tr"])(scope, receive, send_and_note)
        finally:
            route = getattr(routed.get("route"), "path", "unmatched")
            method = scope["method"] if scope["method"] in _METHODS else "other"
            count, seconds = self._instruments(route, method, status or 500)
            count.inc()
            seconds.observe((responded or time.perf_counter()) - started)
            visit: Visit = scope["m3tr"]
            # A prediction without rows changes nothing, so it is not in the audit log.
            if method in _CHANGING and (visit.note is not None or route != "/predict"):
                self._audit(visit, method=method, route=route, status=status or 500, **(visit.note or {}))

    def _instruments(self, route: str, method: str, status: int) -> tuple[Counter, Histogram]:
        # Counters and histograms are cached, because finding one by its labels costs more than using it. Only few combinations of labels
        # occur.
        key = (route, method, status)
        found = self._known.get(key)
        if found is None:
            found = (
                self._metrics.requests.labels(route, method, str(status)),
                self._metrics.request_seconds.labels(route, method),
            )
            self._known[key] = found
        return found
