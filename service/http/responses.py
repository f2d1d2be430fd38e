"""JSON responses for results and errors."""

from __future__ import annotations

from typing import Any

import orjson
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from service.http.visit import Visit
from service.problems import Internal, NotFound, Problem, WrongMethod


def json_response(body: Any, status: int = 200) -> Response:
    """Return a JSON response."""
    return Response(orjson.dumps(body), status, media_type="application/json")


def problem_response(problem: Problem, visit: Visit) -> Response:
    """Return an error response as application/problem+json. It contains the request's id."""
    body = orjson.dumps({**problem.body(), "request_id": visit.request_id})
    return Response(body, problem.status, headers=problem.headers, media_type="application/problem+json")


async def on_problem(request: Request, error: Exception) -> Response:
    """Return the response to a request that raised one of our own errors."""
    assert isinstance(error, Problem)
    return problem_response(error, Visit.of(request))


async def on_http_error(request: Request, error: Exception) -> Response:
    """Return the response to a request for which the router raised an error, such as an unknown route or method."""
    assert isinstance(error, HTTPException)
    problem: Problem
    if error.status_code == 404:
        problem = NotFound("no such route", field="path", value=request.url.path[:100])
    elif error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        if "GET" in allowed and "HEAD" not in allowed:
            allowed += ", HEAD"
            error.headers = {**(error.headers or {}), "Allow": allowed}
        problem = WrongMethod("not allowed on this route", field="method", value=request.method[:100], allowed=allowed)
    else:
        problem = Internal(error.detail)
    return problem_response(problem.copy(headers=error.headers), Visit.of(request))
