"""GET /models, POST /models/{version}/activate, POST /models/{version}/shadow and DELETE /models/shadow."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from service.http.responses import json_response
from service.http.visit import Visit
from service.routes import response_schemas
from service.routes.parameters import authorize
from service.routes.request_schemas import VERSION_PATH

router = APIRouter(tags=["models"])


@router.get("/models", openapi_extra=response_schemas.MODELS, response_model=None)
async def list_models(request: Request) -> Response:
    """List every version: the served bundle, and those beside it.

    ``state`` is active, shadow (repeats forecasts to be compared), loaded (was active, and can be again at once), available, or
    broken. ``reason`` says why it is broken, or why it cannot be activated. ``evaluation`` is the pooled row of its report.
    """
    return json_response({"models": await authorize(request, "predict").models.rows()})


@router.post("/models/{version}/activate", openapi_extra=VERSION_PATH | response_schemas.OBJECT, response_model=None)
async def activate(request: Request) -> Response:
    """Make a version the active one: it is verified, loaded and warmed up, and takes over between two batches.

    The response comes when that is done. Nothing changes if the version is damaged or does not fit.
    """
    context = authorize(request, "admin")
    Visit.of(request).note = {"version": request.path_params["version"][:100]}
    return json_response(await context.models.activate(request.path_params["version"]))


@router.post("/models/{version}/shadow", openapi_extra=VERSION_PATH | response_schemas.OBJECT, response_model=None)
async def shadow(request: Request) -> Response:
    """Make a version the shadow of this replica: its forecasts are compared, and scored at GET /quality, but never served."""
    context = authorize(request, "admin")
    Visit.of(request).note = {"version": request.path_params["version"][:100]}
    return json_response(await context.models.begin_shadow(request.path_params["version"]))


@router.delete("/models/shadow", response_model=None, status_code=204)
async def end_shadow(request: Request) -> Response:
    """End the shadow."""
    await authorize(request, "admin").models.end_shadow()
    return Response(status_code=204)
