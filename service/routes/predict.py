"""POST /predict: a video, what happened to it, and its forecast in one call."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service import answers
from service.bodies import read_json
from service.responses import json_response
from service.routes.access import context
from service.routes.schema import predict_body

router = APIRouter(tags=["forecasts"])


@router.post("/predict", openapi_extra=predict_body(), response_model=None)
async def post_predict(request: Request) -> Response:
    """Register the video, store its rows, and forecast; a body with anything wrong in it stores nothing.

    Needs the scope predict, and ingest as well where it registers or brings rows.
    """
    parts = context(request, "predict")
    prediction = parts.videos.parse_prediction(await read_json(request, parts.limits))
    if prediction.writes:
        parts.keys.check(request, "ingest")
    answer, applied = await parts.videos.predict(prediction)
    told = answers.forecast(answer)
    told["rows"] = {
        "accepted": applied.outcome.accepted,
        "duplicate": applied.outcome.duplicate,
        "corrected": applied.outcome.corrected,
        "parked_applied": applied.parked_applied,
        "parked_rejected": applied.parked_rejected,
    }
    return json_response(told)
