"""POST /predict: a video, what happened to it, and its forecast in one call."""

from __future__ import annotations

import orjson
from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.context import Context
from service.forecasts.forecast_result import ForecastResult
from service.http.audit import video_digest
from service.http.bodies import read_json
from service.http.visit import Visit
from service.problems import Problem
from service.routes.parameters import context, key_name, request_key
from service.routes.request_schemas import predict_body
from service.store.store import AppliedRows
from service.videos.video_json import prediction_json

router = APIRouter(tags=["forecasts"])


@router.post("/predict", openapi_extra=predict_body(), response_model=None)
async def post_predict(request: Request) -> Response:
    """Register the video, store its rows, and forecast; a body with anything wrong in it stores nothing.

    A list of such bodies is answered with a list in the same order, each item with its own ``status``: a forecast where that
    is 200, and otherwise a problem; a bad item stores nothing of its own and does not touch the others.

    Sent again with the same ``Idempotency-Key``, events without an id count once.

    Needs the scope predict, and ingest as well where it registers or brings rows.
    """
    parts = context(request, "predict")
    key = request_key(request)
    body = await read_json(request, parts.limits)
    if isinstance(body, list):
        results = await parts.predictions.predict_all(
            body, lambda: _check_write(parts, request), key_name(request), key
        )
        return Response(b"[" + b",".join(map(_item, results)) + b"]", media_type="application/json")
    prediction = await parts.predictions.parse(body, key_name(request), key)
    if prediction.writes:
        _check_write(parts, request)
        Visit.of(request).note = {"video": video_digest(prediction.video_id), "rows": len(prediction.rows)}
    result, applied = await parts.predictions.predict(prediction)
    return Response(prediction_json(result, applied), media_type="application/json")


def _check_write(parts: Context, request: Request) -> None:
    parts.keys.check(request, "ingest")
    Visit.of(request).note = {}


def _item(result: tuple[ForecastResult, AppliedRows] | Problem) -> bytes:
    if isinstance(result, Problem):
        return orjson.dumps(result.body())
    return b'{"status":200,' + prediction_json(*result)[1:]
