"""GET /metrics, /health/live and /health/ready: open to probes, without a key."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from model.errors import BankError
from service.http.responses import json_response
from service.problems import Unavailable
from service.routes import replies
from service.routes.access import context

router = APIRouter(tags=["operations"])


@router.get("/metrics", openapi_extra=replies.METRICS, response_class=Response, response_model=None)
async def metrics(request: Request) -> Response:
    """Everything Prometheus reads."""
    # In a thread: asking the bank for its size may take up to its deadline.
    body = await asyncio.to_thread(context(request).metrics.exposition)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get("/health/live", openapi_extra=replies.LIVE, response_model=None)
async def live(request: Request) -> Response:
    """The process answers."""
    return json_response({"status": "live"})


@router.get("/health/ready", openapi_extra=replies.READY, response_model=None)
async def ready(request: Request) -> Response:
    """Rows can be stored and forecasts made; a bank that is down is told, and does not make the service unready.

    What is said of the event store was found out in the background: asking costs it nothing.
    """
    parts = context(request)
    active = parts.engine.active
    bank = "ok"
    try:
        await asyncio.to_thread(active.bank.counts)
    except BankError:
        bank = "down"
    found: dict[str, Any] = {**parts.health.told(), "model": "ok", "bank": bank, "model_version": active.version}
    if parts.lifecycle.draining:
        raise Unavailable("the service is stopping", **found)
    if reason := parts.health.reason:
        raise Unavailable(reason, **found)
    return json_response({"status": "ready", **found})
