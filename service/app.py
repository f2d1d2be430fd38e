"""Creates the ASGI application of a service."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator

import structlog
from fastapi import FastAPI
from starlette.exceptions import HTTPException

from service.context import Context
from service.http.load_shedding import Shedding
from service.http.raw_paths import RawVideoPaths
from service.http.request_metrics import RequestMetrics
from service.http.responses import on_http_error, on_problem
from service.problems import Problem, Unavailable
from service.routes import docs, forecast_stream, models, operations, predict, quality, row_stream, rows, videos
from service.routes.fast_path import FastPath
from service.routes.response_schemas import PROBLEMS
from service.version import service_version

log = structlog.get_logger(__name__)


def create_app(context: Context) -> FastAPI:
    """Return the application. Its lifespan starts and stops the background work."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await _start(context)
        try:
            yield
        finally:
            await _stop(context)

    app = FastAPI(
        title="M3TR Online",
        version=service_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        # The URL is relative to the schema's address, so it is correct behind any path prefix.
        servers=[{"url": "."}],
        root_path_in_servers=False,
        responses=PROBLEMS,
    )
    app.state.context = context
    for module in (predict, rows, row_stream, forecast_stream, videos, quality, models, operations, docs):
        app.include_router(module.router)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(FastPath)
    app.add_middleware(RequestMetrics, metrics=context.metrics, audit=context.audit)
    app.add_middleware(RawVideoPaths)
    app.add_middleware(
        Shedding,
        limits=context.concurrency,
        metrics=context.metrics,
        lifecycle=context.lifecycle,
        keys=context.keys,
        hosts=context.hosts,
        budget=context.budget,
        turns=context.turns,
        prefix=context.settings.root_path,
    )
    return app


async def _start(context: Context) -> None:
    context.engine.batcher.start()
    with contextlib.suppress(Unavailable):
        await context.store.ready()
    if context.redis.state.status != "down":
        await context.health.check_safety()
        with contextlib.suppress(Unavailable):
            await context.forgetting.prepare(context.engine.active)
            await context.models.follow()
    for part in context.background:
        part.start()


async def _stop(context: Context) -> None:
    for part in reversed(context.background):
        try:
            await part.stop()
        except Exception:
            # Log the error and continue, because the other background work must be stopped too.
            log.exception("background work did not stop cleanly", task=type(part).__name__)
    await context.engine.batcher.stop()
    await context.models.close()
    await context.redis.close()
