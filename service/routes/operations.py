"""GET /metrics, /health/live and /health/ready: open to probes, without a key."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from model.errors import BankError
from service.problems import Unavailable
from service.responses import json_response
from service.routes.access import context

router = APIRouter(tags=["operations"])


@router.get("/metrics", response_model=None)
async def metrics(request: Request) -> Response:
    """Everything Prometheus reads."""
    # In a thread: asking the bank for its size may take up to its deadline.
    body = await asyncio.to_thread(context(request).metrics.exposition)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get("/health/live", response_model=None)
async def live(request: Request) -> Response:
    """The process answers."""
    return json_response({"status": "live"})


@router.get("/health/ready", response_model=None)
async def ready(request: Request) -> Response:
    """Rows can be stored and forecasts made; a bank that is down is told, and does not make the service unready."""
    parts = context(request)
    version = parts.engine.active.version
    bank = "ok"
    try:
        await asyncio.to_thread(parts.engine.active.bank.counts)
    except BankError:
        bank = "down"
    try:
        await parts.store.ready()
    except Unavailable:
        raise Unavailable(
            "the event store does not answer", store="down", model="ok", bank=bank, model_version=version
        ) from None
    return json_response({"status": "ready", "store": "ok", "model": "ok", "bank": bank, "model_version": version})
