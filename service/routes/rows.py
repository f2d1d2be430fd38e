"""POST /events and POST /counters."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model.history import Mode
from service import answers
from service.bodies import read_items
from service.problems import Invalid, Unavailable
from service.responses import json_response
from service.routes.access import context
from service.routes.schema import rows_body

router = APIRouter(tags=["rows"])


@router.post("/events", openapi_extra=rows_body("events"), response_model=None)
async def post_events(request: Request) -> Response:
    """Store a batch of engagement events."""
    return await _post(request, "events")


@router.post("/counters", openapi_extra=rows_body("counters"), response_model=None)
async def post_counters(request: Request) -> Response:
    """Store a batch of snapshots of cumulative counters."""
    return await _post(request, "counters")


async def _post(request: Request, mode: Mode) -> Response:
    parts = context(request, "ingest")
    items = await read_items(request, parts.limits)
    outcome = await parts.ingest.take(mode, items)
    if items and len(outcome.rejections) == len(items):
        first, told = outcome.rejections[0], answers.outcome(outcome)
        if all(refused.retryable for refused in outcome.rejections):
            raise Unavailable(
                "no row could be taken", field=first.field, value=first.value, allowed=first.allowed, **told
            )
        raise Invalid(first.field, first.value, first.allowed, reason=first.reason, **told)
    return json_response(answers.outcome(outcome))
