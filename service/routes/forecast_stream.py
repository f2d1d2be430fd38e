"""GET /videos and GET /videos/{id}/forecast/stream: what rises, and forecasts as they change."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.visit import Visit
from service.routes.parameters import context, query_numbers, video_id
from service.routes.request_schemas import STREAM_QUERY
from service.streaming.topic import Subscription

router = APIRouter(tags=["live"])

_RETRY: Final = b"retry: 2000\n\n"


@router.get(
    "/videos/{video_id}/forecast/stream",
    openapi_extra=STREAM_QUERY,
    response_model=None,
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {"schema": {"type": "string"}}}}},
)
async def watch_forecast(request: Request) -> Response:
    """Forecast a registered video, and again whenever something happens to it, as server-sent events.

    Event ``forecast``: its id is the video's version. Event ``end`` is the last one; its reason is deleted, stopping (come
    back), or failed. A client that reads slowly gets the newest forecast and misses those between.

    The key may come as ``?api_key=`` as well, as a browser's EventSource cannot set headers.
    """
    parts = context(request, "predict", ("horizons_s",))
    identifier = video_id(request, parts)
    horizons_us = parts.predictions.horizons(query_numbers(request, "horizons_s"))
    return _Events(await parts.subscriptions.subscribe(identifier, horizons_us, Visit.of(request).client))


class _Events(Response):
    """A subscription as text/event-stream; ends when either side leaves."""

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        del self.headers["content-length"]
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the end."""
        watch = asyncio.create_task(self._gone(receive))
        try:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            if "head" in scope:
                await send({"type": "http.response.body", "body": b""})
                return
            await send({"type": "http.response.body", "body": _RETRY, "more_body": True})
            async for event in self._subscription.events():
                await send({"type": "http.response.body", "body": event, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            watch.cancel()
            self._subscription.leave()

    async def _gone(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._subscription.end()
