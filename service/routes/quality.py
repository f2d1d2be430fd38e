"""GET /quality: scores of the forecasts whose outcome is known."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.http.responses import json_response
from service.routes import response_schemas
from service.routes.parameters import authorize

router = APIRouter(tags=["operations"])


@router.get("/quality", openapi_extra=response_schemas.OBJECT, response_model=None)
async def quality(request: Request) -> Response:
    """Return the scores of the last days by model, metric, horizon and age, in log2 units of growth. An undefined score is null."""
    context = authorize(request, "predict")
    active = context.engine.active
    return json_response(await context.quality.read(active.version, active.forecaster.manifest.metrics))
