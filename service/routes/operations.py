"""GET /metrics, /health/live and /health/ready. Probes can call them without an API key."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import Response

from service.http.responses import json_response
from service.routes import response_schemas
from service.routes.parameters import context_of

router = APIRouter(tags=["operations"])


@router.get("/metrics", openapi_extra=response_schemas.METRICS, response_class=Response, response_model=None)
async def metrics(request: Request) -> Response:
    """Return all metrics in the Prometheus text format."""
    # Run in a thread, because formatting several hundred lines takes milliseconds.
    body = await asyncio.to_thread(context_of(request).metrics.exposition)
    return Response(body, media_type=CONTENT_TYPE_LATEST)


@router.get("/health/live", openapi_extra=response_schemas.LIVE, response_model=None)
async def live(request: Request) -> Response:
    """Return 200, which shows that the service responds."""
    return json_response({"status": "live"})


@router.get("/health/ready", openapi_extra=response_schemas.READY, response_model=None)
async def ready(request: Request) -> Response:
    """Return 200 if rows can be stored and forecasts can be made, otherwise 503.

    If the bank is down, the response says so, but the service stays ready. Everything is checked in the background, so that a probe is
    cheap.
    """
    return json_response(context_of(request).readiness.check())
