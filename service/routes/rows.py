"""POST /events and POST /counters."""

from __future__ import annotations

from typing import Final

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from model.engagement.history import Mode
from service.context import Context
from service.http.bodies import read_body, read_lines
from service.http.media import is_lines
from service.http.responses import json_response
from service.http.visit import Visit
from service.ingest import outcome_json
from service.problems import DamagedRecord, Invalid, Problem, Unavailable
from service.routes.parameters import authorize, request_key
from service.routes.request_schemas import rows_body
from service.store.rows.outcome import Outcome

router = APIRouter(tags=["rows"])

LISTED: Final = 1000
"""Maximum number of rejections that the response to NDJSON lists. All rejections are counted."""


@router.post("/events", openapi_extra=rows_body("events"), response_model=None)
async def post_events(request: Request) -> Response:
    """Store a batch of engagement events.

    If the request is repeated with the same ``Idempotency-Key``, events without an id count once. In a response with status 503,
    ``unknown`` is the number of rows that may or may not have been stored. The other counts describe the remaining rows.
    """
    return await _post(request, "events")


@router.post("/counters", openapi_extra=rows_body("counters"), response_model=None)
async def post_counters(request: Request) -> Response:
    """Store a batch of snapshots of cumulative counters."""
    return await _post(request, "counters")


async def _post(request: Request, mode: Mode) -> Response:
    context = authorize(request, "ingest")
    if is_lines(request):
        outcome = await _stream(request, context, mode)
    else:
        body = await read_body(request, context.limits)
        outcome = await context.ingest.take_json(mode, body, Visit.of(request).client, request_key(request))
    Visit.of(request).note = {"accepted": outcome.accepted, "parked": outcome.parked, "rejected": outcome.rejected}
    response = await outcome_json.long_outcome(outcome, context.turns, Visit.of(request).client)
    if outcome.rejected and not outcome.accepted + outcome.duplicate + outcome.parked:
        first = outcome.rejections[0]
        if all(rejected.reason == "damaged" for rejected in outcome.rejections):
            raise DamagedRecord(first.value, "none of its rows could be stored").copy(**response)
        if all(rejected.retryable for rejected in outcome.rejections):
            raise Unavailable(
                "no row could be stored", field=first.field, value=first.value, allowed=first.allowed, **response
            )
        raise Invalid(first.field, first.value, first.allowed, reason=first.reason, **response)
    return json_response(response)


async def _stream(request: Request, context: Context, mode: Mode) -> Outcome:
    """Store each batch of NDJSON lines before the next one is read.

    If a batch fails, the problem also describes the rows before that batch. ``rows`` is the number of rows before the batch. ``unknown``
    is the number of the batch's rows that may or may not have been stored.
    """
    total, before, key, client = Outcome(), 0, request_key(request), Visit.of(request).client
    try:
        async for lines in read_lines(request, context.limits, context.ingest.max_rows):
            async with context.limits.turns.batch(client):
                listed = len(total.rejections) < LISTED
                outcome = await context.ingest.take_lines(mode, lines, client, key, before, listed)
            total.add(outcome)
            total.list_at_most(LISTED)
            before += len(lines)
    except Problem as problem:
        Visit.of(request).note = {"accepted": total.accepted, "parked": total.parked, "rejected": total.rejected}
        # Add the rows of the failing batch that were stored.
        for name in ("accepted", "duplicate", "parked", "corrected"):
            setattr(total, name, getattr(total, name) + problem.extra.get(name, 0))
        raise problem.copy(**{"rows": before, **outcome_json.outcome(total)}) from None
    return total
