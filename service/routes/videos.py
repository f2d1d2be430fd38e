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
from service.rankings.pages import parse_cursor, parse_limit, parse_metric, parse_sort
from service.routes import response_schemas
from service.routes.parameters import (
    authorize,
    key_name,
    query_names,
    query_numbers,
    query_text,
    query_time,
    video_id,
)
from service.routes.request_schemas import (
    FORECAST_QUERY,
    LIST_QUERY,
    VIDEO_PATH,
    correction_body,
    video_body,
)
from service.videos.thresholds import parse_thresholds
from service.videos.video_json import video_fields

router = APIRouter(tags=["videos"])


@router.put("/videos/{video_id}", openapi_extra=video_body(), response_model=None)
async def put_video(request: Request) -> Response:
    """Register a video, or replace its metadata. Rows that arrived before the registration are applied now."""
    context = authorize(request, "ingest")
    identifier = video_id(request, context)
    Visit.of(request).note = {"video": video_digest(identifier)}
    body = await read_json(request, context.limits)
    if not isinstance(body, dict):
        raise Invalid("body", body, "a JSON object")
    if body.pop("video_id", identifier) != identifier:
        raise Invalid("video_id", "an id that differs from the path's", "the path's id, or no id")
    applied, unused = await context.videos.register(identifier, body, key_name(request))
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
    """Return a stored video: metadata, counts, version."""
    context = authorize(request, "predict")
    return json_response(video_fields(*await context.videos.get(video_id(request, context))))


@router.delete("/videos/{video_id}", openapi_extra=VIDEO_PATH, response_model=None, status_code=204)
async def delete_video(request: Request) -> Response:
    """Delete everything about a video."""
    context = authorize(request, "admin")
    identifier = video_id(request, context)
    Visit.of(request).note = {"video": video_digest(identifier)}
    await context.videos.delete(identifier)
    return Response(status_code=204)


@router.post("/videos/{video_id}/corrections", openapi_extra=correction_body(), response_model=None)
async def post_correction(request: Request) -> Response:
    """Lower a count that was wrong, such as a counter of 10^15. Rows alone never lower a count.

    ``replaces`` is the present count. If the count is different, the response is 409. ``value`` is what the count should have been. For a
    counter, readings equal to ``replaces`` become ``value``, and the count is then the largest reading. If ``from`` is given, every
    reading from that time onwards becomes ``value`` if it is above ``value``. For events, the excess is taken from the bins with the
    largest sums.
    """
    context = authorize(request, "admin")
    identifier = video_id(request, context)
    Visit.of(request).note = {"video": video_digest(identifier)}
    correction, corrected = await context.videos.correct(identifier, await read_json(request, context.limits))
    summary = {"type": correction.type, "replaced": correction.replaces, "total": corrected.total}
    Visit.of(request).note = {"video": video_digest(identifier), **summary}
    return json_response(
        {
            "video_id": identifier,
            **summary,
            "version": corrected.version,
        }
    )


@router.get("/videos/{video_id}/forecast", openapi_extra=FORECAST_QUERY, response_model=None)
async def get_forecast(request: Request) -> Response:
    """Forecast a registered video."""
    context = authorize(request, "predict", ("at", "horizons_s", "thresholds", "metrics"))
    identifier = video_id(request, context)
    horizons_us = context.predictions.horizons(query_numbers(request, "horizons_s"))
    thresholds = parse_thresholds(query_numbers(request, "thresholds"))
    metrics = context.predictions.metrics(query_names(request, "metrics"))
    at_us = query_time(request, "at")
    result = await context.predictions.forecast(identifier, at_us, horizons_us, thresholds, metrics)
    return Response(forecast_json(result), media_type="application/json")


@router.get("/videos", openapi_extra=LIST_QUERY, response_model=None)
async def list_videos(request: Request) -> Response:
    """List videos by growth, by expected count, or by present count, of the bundle's first metric or of ``metric``.

    ``as_of`` is the time for which a row's numbers were computed. Pass ``next_cursor`` to get the next page. The cursor is null on the
    last page.
    """
    context = authorize(request, "predict", ("sort", "limit", "cursor", "metric"))
    sort, limit, cursor, metric = (query_text(request, name) for name in ("sort", "limit", "cursor", "metric"))
    order, further = parse_sort(sort), parse_metric(metric, context.engine.active.forecaster.manifest.metrics)
    page = await context.rankings.page(order, parse_limit(limit), parse_cursor(cursor, order, further), further)
    return json_response(page)
