"""Calls the busiest routes without FastAPI's router and dependency injection.

The handlers of these routes take a request and return a response, so they need neither the router nor dependency injection. The router and
dependency injection together cost as much as all other work for a cached forecast. The routes are also registered with FastAPI, which
needs them for the schema and for the errors that wrong methods cause.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from service.http.responses import on_problem
from service.problems import Problem
from service.routes import operations, predict, rows, videos

Handler = Callable[[Request], Awaitable[Response]]


class _Route(NamedTuple):
    path: str
    handler: Handler


_FORECAST: Final = _Route("/videos/{video_id}/forecast", videos.get_forecast)
_FORECAST_PATH: Final = re.compile("/videos/([^/]+)/forecast")
_EXACT: Final = {
    ("POST", "/predict"): _Route("/predict", predict.post_predict),
    ("POST", "/events"): _Route("/events", rows.post_events),
    ("POST", "/counters"): _Route("/counters", rows.post_counters),
    # These routes are not busy, but anybody may call them without an API key and without a limit.
    ("GET", "/health/ready"): _Route("/health/ready", operations.ready),
    ("GET", "/health/live"): _Route("/health/live", operations.live),
}


class FastPath:
    """Calls the handler of a busy route, and passes every other request to the router."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle a request to a busy route. Pass every other connection on to the router."""
        route = _find(scope) if scope["type"] == "http" else None
        if route is None:
            await self._app(scope, receive, send)
            return
        scope["route"] = route
        request = Request(scope, receive, send)
        try:
            response = await route.handler(request)
        except Problem as problem:
            response = await on_problem(request, problem)
        await response(scope, receive, send)


def _find(scope: Scope) -> _Route | None:
    path: str = scope["path"]
    if scope["method"] == "GET" and (found := _FORECAST_PATH.fullmatch(path)):
        scope["path_params"] = {"video_id": found[1]}
        return _FORECAST
    return _EXACT.get((scope["method"], path))
