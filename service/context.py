"""Everything one running service is made of, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric

from model.errors import BankError
from service.auth import Keys
from service.background import Background
from service.bodies import Limits
from service.catalog import Catalog
from service.deployment import Deployment
from service.engine import Engine
from service.histories import Histories
from service.ingest import Ingest
from service.link import Link
from service.metrics import Metrics, counter, gauge
from service.rowparser import RowParser
from service.settings import Settings
from service.store import Store
from service.times import now_us
from service.videos import Videos


@dataclass(frozen=True, slots=True)
class Context:
    """The parts that routes and lifespan use."""

    settings: Settings
    metrics: Metrics
    keys: Keys
    limits: Limits
    link: Link
    store: Store
    engine: Engine
    ingest: Ingest
    videos: Videos
    background: Sequence[Background]


def new_metrics(settings: Settings) -> Metrics:
    """Instruments whose top buckets are the deadlines of these settings."""
    return Metrics(
        request_deadline_s=settings.request_deadline_ms / 1000,
        store_deadline_s=settings.store_deadline_ms / 1000,
        bank_deadline_s=settings.bank_deadline_ms / 1000,
    )


def build(
    settings: Settings,
    metrics: Metrics,
    deployment: Deployment,
    redis_url: str,
    clock: Callable[[], int] = now_us,
) -> Context:
    """Put a service together around the deployment that answers first."""
    manifest = deployment.forecaster.manifest
    link = Link(
        redis_url, metrics, deadline_s=settings.store_deadline_ms / 1000, connections=settings.store_connections
    )
    store = Store(link, settings, metrics)
    histories = Histories(store, settings.cache_videos)
    engine = Engine(deployment, histories, settings, metrics, clock)
    parser = RowParser(Catalog(manifest.types), settings, clock)
    ingest = Ingest(parser, store, metrics, settings.max_batch_rows)
    videos = Videos(store, histories, engine, ingest, parser, settings, metrics, manifest.max_horizon_us)
    limits = Limits(settings.max_body_bytes, settings.body_deadline_ms / 1000)
    metrics.watch(lambda: _readings(engine))
    background: list[Background] = []
    return Context(settings, metrics, Keys(settings.keys()), limits, link, store, engine, ingest, videos, background)


def _readings(engine: Engine) -> Sequence[Metric]:
    pool = engine.active.pool
    readings = [
        counter("m3tr_state_cache_hits", "Forecasts that went on from a cached state", pool.hits),
        counter("m3tr_state_cache_misses", "Forecasts that built their state from the histogram", pool.misses),
        counter("m3tr_state_cache_evictions", "Cached states that made room for others", pool.evictions),
        gauge("m3tr_state_cache_used_slots", "Videos with a cached state", pool.used),
        gauge("m3tr_state_cache_capacity_slots", "Videos that can have a cached state", pool.capacity),
        gauge("m3tr_model_queue_forecasts", "Forecasts waiting for the model", engine.batcher.waiting),
    ]
    try:
        counts = engine.active.bank.counts()
    except BankError:
        return readings
    points = gauge("m3tr_bank_points", "Points of the bank", counts["videos"] + counts["trajectories"])
    return [*readings, points]
