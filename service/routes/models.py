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
    """List every version: the served bundle, and the bundles that can be activated.

    ``state`` is one of: active, shadow (repeats forecasts for comparison), loaded (was active, and can be activated again at once),
    available, or broken. ``reason`` says why a version is broken or cannot be activated. ``evaluation`` is the pooled row of the
    version's evaluation report.
    """
    return json_response({"models": await authorize(request, "predict").models.rows()})


@router.post("/models/{version}/activate", openapi_extra=VERSION_PATH | response_schemas.OBJECT, response_model=None)
async def activate(request: Request) -> Response:
    """Make a version active. The version is verified, loaded and warmed up, and replaces the active model between two batches.

    The response is sent when the replacement is complete. If the version is damaged or does not fit, nothing changes.
    """
    context = authorize(request, "admin")
    Visit.of(request).note = {"version": request.path_params["version"][:100]}
    return json_response(await context.models.activate(request.path_params["version"]))


@router.post("/models/{version}/shadow", openapi_extra=VERSION_PATH | response_schemas.OBJECT, response_model=None)
async def shadow(request: Request) -> Response:
    """Make a version the shadow of this replica.

    The shadow's forecasts are compared with the active model's forecasts and scored at GET /quality, but never served.
    """
    context = authorize(request, "admin")
    Visit.of(request).note = {"version": request.path_params["version"][:100]}
    return json_response(await context.models.begin_shadow(request.path_params["version"]))


@router.delete("/models/shadow", response_model=None, status_code=204)
async def end_shadow(request: Request) -> Response:
    """Stop the shadow."""
    await authorize(request, "admin").models.end_shadow()
    return Response(status_code=204)
