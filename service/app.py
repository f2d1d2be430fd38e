"""The ASGI application around a context."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from importlib.metadata import PackageNotFoundError, version

import structlog
from fastapi import FastAPI
from prometheus_client.core import Metric
from starlette.exceptions import HTTPException

from service.background import Background, Running
from service.context import Context
from service.http.load_shedding import Shedding
from service.http.raw_paths import RawVideoPaths
from service.http.request_metrics import RequestMetrics
from service.http.responses import on_http_error, on_problem
from service.lag import Lag
from service.metrics import Metrics, info
from service.problems import Problem, Unavailable
from service.routes import docs, forecast_stream, models, operations, predict, quality, row_stream, rows, videos
from service.routes.fast_path import FastPath
from service.routes.response_schemas import PROBLEMS
from service.store.redis.embedded_server import EmbeddedError, EmbeddedServer

log = structlog.get_logger(__name__)

_WATCH_S = 0.5


def service_version() -> str:
    """The installed package's version."""
    try:
        return version("m3tr-online")
    except PackageNotFoundError:
        return "0+unknown"


def create_app(context: Context, server: EmbeddedServer | None = None) -> FastAPI:
    """The application; restarts ``server`` whenever it dies, and stops it at the end."""

    @contextlib.asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        died = lambda name: context.metrics.task_deaths.labels(name).inc()  # noqa: E731
        context.engine.batcher.died = died
        context.engine.batcher.start()
        background: list[Background] = [Lag(context.metrics), *context.background]
        if server is not None:
            background.append(_StoreKeeper(server, context.metrics))
        for work in background:
            for task in work.running:
                task.died = died
        with contextlib.suppress(Unavailable):
            await context.store.ready()
        if context.link.state.status != "down":
            await context.health.check_safety()
            with contextlib.suppress(Unavailable):
                await context.forgetting.prepare(context.engine.active)
                await context.models.follow()
        for work in background:
            work.start()
        try:
            yield
        finally:
            for work in reversed(background):
                try:
                    await work.stop()
                except Exception:
                    # The others are to be stopped all the same.
                    log.exception("work in the background did not end well", task=type(work).__name__)
            await context.engine.batcher.stop()
            await context.models.close()
            await context.link.close()

    app = FastAPI(
        title="M3TR Online",
        version=service_version(),
        lifespan=lifespan,
        redirect_slashes=False,
        docs_url=None,
        redoc_url=None,
        # Relative to the schema's own address, and so right behind any prefix.
        servers=[{"url": "."}],
        root_path_in_servers=False,
        responses=PROBLEMS,
    )
    app.state.context = context
    context.metrics.watch(lambda: [_build(app, context)])
    for module in (predict, rows, row_stream, forecast_stream, videos, quality, models, operations, docs):
        app.include_router(module.router)
    app.add_exception_handler(Problem, on_problem)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_middleware(FastPath)
    app.add_middleware(RequestMetrics, metrics=context.metrics, audit=context.audit)
    app.add_middleware(RawVideoPaths)
    app.add_middleware(
        Shedding,
        settings=context.settings,
        metrics=context.metrics,
        lifecycle=context.lifecycle,
        keys=context.keys,
        hosts=context.hosts,
        budget=context.budget,
        turns=context.turns,
    )
    return app


def _build(app: FastAPI, context: Context) -> Metric:
    text = "Version of the service and of the model that answers"
    return info("m3tr_build", text, version=app.version, model_version=context.engine.active.version)


class _StoreKeeper(Running):
    """Starts the embedded store again when it died."""

    def __init__(self, server: EmbeddedServer, metrics: Metrics) -> None:
        self._server, self._metrics = server, metrics

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_S)
            if not self._server.alive:
                log.warning("the embedded store died; starting it again")
                self._metrics.store_restarts.inc()
                try:
                    await asyncio.to_thread(self._server.start)
                except (EmbeddedError, OSError) as error:
                    log.error("the embedded store does not start", error=str(error))
