"""GET /videos/{id}/forecast/stream: sends a forecast whenever it changes."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from service.http.visit import Visit
from service.routes.parameters import authorize, query_names, query_numbers, video_id
from service.routes.request_schemas import STREAM_QUERY
from service.streaming.topic import Subscription
from service.videos.thresholds import parse_thresholds

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
    """Send a forecast of a registered video now and whenever the video changes, as server-sent events.

    An event ``forecast`` has the video's version as its id. The event ``end`` is the last one. Its ``reason`` is ``deleted``, ``stopping``
    (connect again) or ``failed``. A slow client gets only the newest forecast and misses earlier ones.

    The API key may also be sent as ``?api_key=``, because a browser's EventSource cannot set headers.
    """
    context = authorize(request, "predict", ("horizons_s", "thresholds", "metrics"))
    identifier = video_id(request, context)
    horizons_us = context.predictions.horizons(query_numbers(request, "horizons_s"))
    thresholds = parse_thresholds(query_numbers(request, "thresholds"))
    metrics = context.predictions.metrics(query_names(request, "metrics"))
    question, client = (horizons_us, thresholds, metrics), Visit.of(request).client
    return _Events(await context.subscriptions.subscribe(identifier, question, client))


class _Events(Response):
    """Sends a subscription as text/event-stream. The response ends when the client disconnects or the subscription ends."""

    def __init__(self, subscription: Subscription) -> None:
        super().__init__(
            media_type="text/event-stream",
            headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
        )
        del self.headers["content-length"]
        self._subscription = subscription

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until the end."""
        disconnected = asyncio.create_task(self._until_disconnect(receive))
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
            disconnected.cancel()
            self._subscription.leave()

    async def _until_disconnect(self, receive: Receive) -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        self._subscription.end()
