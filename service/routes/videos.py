"""PUT, GET, DELETE /videos/{id}, POST /videos/{id}/corrections and GET /videos/{id}/forecast."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.forecasts.forecast_json import forecast_json
from service.http.audit import video_digest
from service.http.bodies import read_json
from service.http.responses import json_response
from service.http.visit import Visit
from service.problems import Invalid
from service.rankings.pages import parse_cursor, parse_limit, parse_sort
from service.routes import response_schemas
from service.routes.parameters import context, key_name, query_numbers, query_text, query_time, video_id
from service.routes.request_schemas import (
    FORECAST_QUERY,
    LIST_QUERY,
    VIDEO_PATH,
    correction_body,
    video_body,
)
from service.videos.video_json import video_fields

router = APIRouter(tags=["videos"])


@router.put("/videos/{video_id}", openapi_extra=video_body(), response_model=None)
async def put_video(request: Request) -> Response:
    """Register a video, or replace its metadata; rows that came before it are applied now."""
    parts = context(request, "ingest")
    identifier = video_id(request, parts)
    Visit.of(request).note = {"video": video_digest(identifier)}
    body = await read_json(request, parts.limits)
    if not isinstance(body, dict):
        raise Invalid("body", body, "a JSON object")
    if body.pop("video_id", identifier) != identifier:
        raise Invalid("video_id", "another id than the path's", "the path's id, or nothing")
    applied, unused = await parts.videos.register(identifier, body, key_name(request))
    return json_response(
        {
            "video_id": identifier,
            "version": applied.version,
            "changed": applied.changed,
            "parked_applied": applied.parked_applied,
            "parked_rejected": applied.parked_rejected,
            "unused_fields": unused,
        }
    )


@router.get("/videos/{video_id}", openapi_extra=VIDEO_PATH | response_schemas.VIDEO, response_model=None)
async def get_video(request: Request) -> Response:
    """Read a video back: metadata, counts, version."""
    parts = context(request, "predict")
    return json_response(video_fields(*await parts.videos.get(video_id(request, parts))))


@router.delete("/videos/{video_id}", openapi_extra=VIDEO_PATH, response_model=None, status_code=204)
async def delete_video(request: Request) -> Response:
    """Forget everything about a video."""
    parts = context(request, "admin")
    identifier = video_id(request, parts)
    Visit.of(request).note = {"video": video_digest(identifier)}
    await parts.videos.delete(identifier)
    return Response(status_code=204)


@router.post("/videos/{video_id}/corrections", openapi_extra=correction_body(), response_model=None)
async def post_correction(request: Request) -> Response:
    """Lower a count that was wrong, such as a counter of 10^15: rows alone never lower one.

    ``replaces`` is the count as it is now (else 409), ``value`` what it should have been. Of a counter, the readings that said
    ``replaces`` say ``value`` from now on, and the count is the largest reading; with ``from``, all readings from then on that
    are above ``value`` say ``value``. Of events, what is too much is taken from the bins with the largest sums.
    """
    parts = context(request, "admin")
    identifier = video_id(request, parts)
    Visit.of(request).note = {"video": video_digest(identifier)}
    correction, done = await parts.videos.correct(identifier, await read_json(request, parts.limits))
    what = {"type": correction.type, "replaced": correction.replaces, "total": done.total}
    Visit.of(request).note = {"video": video_digest(identifier), **what}
    return json_response(
        {
            "video_id": identifier,
            **what,
            "version": done.version,
        }
    )


@router.get("/videos/{video_id}/forecast", openapi_extra=FORECAST_QUERY, response_model=None)
async def get_forecast(request: Request) -> Response:
    """Forecast a registered video."""
    parts = context(request, "predict", ("at", "horizons_s"))
    identifier = video_id(request, parts)
    horizons_us = parts.predictions.horizons(query_numbers(request, "horizons_s"))
    result = await parts.predictions.forecast(identifier, query_time(request, "at"), horizons_us)
    return Response(forecast_json(result), media_type="application/json")


@router.get("/videos", openapi_extra=LIST_QUERY, response_model=None)
async def list_videos(request: Request) -> Response:
    """List videos by what rises, by the expected count, or by the count now.

    Every row says as of when its numbers are. ``next_cursor`` leads to the next page; it is null at the end.
    """
    parts = context(request, "predict", ("sort", "limit", "cursor"))
    sort, limit, cursor = (query_text(request, name) for name in ("sort", "limit", "cursor"))
    order = parse_sort(sort)
    page = await parts.rankings.page(order, parse_limit(limit), parse_cursor(cursor, order))
    return json_response(page)
