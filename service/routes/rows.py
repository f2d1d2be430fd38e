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
from service.routes.parameters import context, request_key
from service.routes.request_schemas import rows_body
from service.store.rows.outcome import Outcome

router = APIRouter(tags=["rows"])

LISTED: Final = 1000
"""Rejections that the answer to a stream lists, at most; it counts them all."""


@router.post("/events", openapi_extra=rows_body("events"), response_model=None)
async def post_events(request: Request) -> Response:
    """Store a batch of engagement events.

    Sent again with the same ``Idempotency-Key``, events without an id count once. A 503 tells in ``unknown`` of how many rows it
    is not known whether they were stored, and otherwise what became of the rows.
    """
    return await _post(request, "events")


@router.post("/counters", openapi_extra=rows_body("counters"), response_model=None)
async def post_counters(request: Request) -> Response:
    """Store a batch of snapshots of cumulative counters."""
    return await _post(request, "counters")


async def _post(request: Request, mode: Mode) -> Response:
    parts = context(request, "ingest")
    if is_lines(request):
        outcome = await _stream(request, parts, mode)
    else:
        body = await read_body(request, parts.limits)
        outcome = await parts.ingest.take_json(mode, body, Visit.of(request).client, request_key(request))
    Visit.of(request).note = {"accepted": outcome.accepted, "parked": outcome.parked, "rejected": outcome.rejected}
    told = await outcome_json.long_outcome(outcome, parts.turns, Visit.of(request).client)
    if outcome.rejected and not outcome.accepted + outcome.duplicate + outcome.parked:
        first = outcome.rejections[0]
        if all(refused.reason == "damaged" for refused in outcome.rejections):
            raise DamagedRecord(first.value, "no row of it could be taken").copy(**told)
        if all(refused.retryable for refused in outcome.rejections):
            raise Unavailable(
                "no row could be taken", field=first.field, value=first.value, allowed=first.allowed, **told
            )
        raise Invalid(first.field, first.value, first.allowed, reason=first.reason, **told)
    return json_response(told)


async def _stream(request: Request, parts: Context, mode: Mode) -> Outcome:
    """Each batch is stored before the next is read; a problem on the way tells what became of the rows before it.

    ``rows`` is how many they are, ``unknown`` how many after them may have been stored or not.
    """
    total, before, key, client = Outcome(), 0, request_key(request), Visit.of(request).client
    try:
        async for lines in read_lines(request, parts.limits, parts.ingest.max_rows):
            async with parts.limits.turns.batch(client):
                listed = len(total.rejections) < LISTED
                outcome = await parts.ingest.take_lines(mode, lines, client, key, before, listed)
            total.add(outcome)
            total.list_at_most(LISTED)
            before += len(lines)
    except Problem as problem:
        Visit.of(request).note = {"accepted": total.accepted, "parked": total.parked, "rejected": total.rejected}
        # What a part of the failing batch brought comes on top.
        for name in ("accepted", "duplicate", "parked", "corrected"):
            setattr(total, name, getattr(total, name) + problem.extra.get(name, 0))
        raise problem.copy(**{"rows": before, **outcome_json.outcome(total)}) from None
    return total
