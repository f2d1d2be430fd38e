"""POST /predict: registers a video, stores its new rows, and returns its forecast in one call."""

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
from service.routes.parameters import authorize, key_name, request_key
from service.routes.request_schemas import predict_body
from service.store.store import AppliedRows
from service.videos.video_json import prediction_json

router = APIRouter(tags=["forecasts"])


@router.post("/predict", openapi_extra=predict_body(), response_model=None)
async def post_predict(request: Request) -> Response:
    """Register a video, store its rows, and forecast. If the body is invalid, nothing is stored.

    The response to a list of bodies is a list in the same order. Each item has its own ``status``. If an item's status is 200, the item is
    a forecast. Otherwise, the item is a problem. For an invalid item, nothing is stored, and the other items are not affected.

    If the request is repeated with the same ``Idempotency-Key``, events without an id count once.

    The API key needs the scope predict. The key also needs the scope ingest if the request registers a video or has rows.
    """
    context = authorize(request, "predict")
    key = request_key(request)
    body = await read_json(request, context.limits)
    if isinstance(body, list):
        results = await context.predictions.predict_all(
            body, lambda: _check_write(context, request), key_name(request), key
        )
        return Response(b"[" + b",".join(map(_item, results)) + b"]", media_type="application/json")
    prediction = await context.predictions.parse(body, key_name(request), key)
    if prediction.writes:
        _check_write(context, request)
        Visit.of(request).note = {"video": video_digest(prediction.video_id), "rows": len(prediction.rows)}
    result, applied = await context.predictions.predict(prediction)
    return Response(prediction_json(result, applied), media_type="application/json")


def _check_write(context: Context, request: Request) -> None:
    context.keys.check(request, "ingest")
    Visit.of(request).note = {}


def _item(result: tuple[ForecastResult, AppliedRows] | Problem) -> bytes:
    if isinstance(result, Problem):
        return orjson.dumps(result.body())
    return b'{"status":200,' + prediction_json(*result)[1:]
