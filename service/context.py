"""Everything one running service is made of, put together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prometheus_client.core import Metric

from service.background import Background
from service.bank.admission import BankAdmission
from service.deployment.deployment import Deployment
from service.deployment.loading import load_model
from service.forecasts import forecast_json
from service.forecasts.engine import Engine
from service.forecasts.handler import ForecastHandler
from service.forgetting.forgetting import Forgetting
from service.forgetting.retention import Retention
from service.http.audit import Audit
from service.http.auth import Keys
from service.http.bodies import Limits
from service.http.budget import Budget
from service.http.hosts import Hosts
from service.ingest.accepted_types import AcceptedTypes
from service.ingest.batch_decoder import BatchDecoder
from service.ingest.group_commit import GroupCommitQueue
from service.ingest.handler import IngestHandler
from service.ingest.parking import Parking
from service.ingest.row_parser import RowParser
from service.ingest.stream_consumer import Consumer
from service.ingest.websocket import RowSockets
from service.lifecycle import Lifecycle
from service.live.subscriptions import ForecastSubscriptions
from service.metrics import Metrics, counter, gauge
from service.models.active_version import ActiveVersion
from service.models.registry import ModelRegistry
from service.models.shadow import Shadow
from service.quality.assembly import quality_work
from service.quality.label_store import LabelStore
from service.quality.report import Report
from service.rankings.pages import Listing
from service.rankings.updater import Ranking
from service.readiness import Readiness
from service.settings import Settings
from service.store.change_subscriber import ChangeSubscriber
from service.store.functions import connect
from service.store.health import Health
from service.store.redis.connection import RedisConnection
from service.store.snapshot_cache import SnapshotCache
from service.store.store import Store
from service.times import now_us
from service.turns import Turns


@dataclass(frozen=True, slots=True)
class Context:
    """The parts that routes and lifespan use."""

    settings: Settings
    metrics: Metrics
    keys: Keys
    hosts: Hosts | None
    """Whom a service without keys answers; None where keys say it."""
    budget: Budget
    audit: Audit
    limits: Limits
    turns: Turns
    link: RedisConnection
    health: Health
    store: Store
    engine: Engine
    ingest: IngestHandler
    videos: ForecastHandler
    background: Sequence[Background]
    lifecycle: Lifecycle
    live: ForecastSubscriptions
    listing: Listing
    producers: RowSockets
    quality: Report
    models: ModelRegistry
    forgetting: Forgetting
    readiness: Readiness

    async def close_streams(self) -> None:
        """End what never ends by itself; a server must do so before it waits for its connections."""
        await self.live.close()
        await self.producers.close()


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
    link = connect(
        redis_url, metrics, deadline_s=settings.store_deadline_ms / 1000, connections=settings.store_connections
    )
    health = Health(link, settings, settings.future_skew_s)
    metrics.watch(health.readings)
    turns = Turns()
    store = Store(link, settings, metrics, manifest.types, turns)
    histories = SnapshotCache(store, settings.cache_videos)
    engine = Engine(deployment, histories, settings, metrics, clock, cache_videos=settings.cache_videos)
    models = ModelRegistry(
        engine,
        Shadow(engine, settings, metrics),
        ActiveVersion(link, enabled=settings.bundles is not None),
        lambda folder, encoder: load_model(settings, settings, metrics, folder, encoder),
        settings,
        metrics,
    )
    keys = Keys(settings.keys(), lambda reason: metrics.refused_keys.labels(reason).inc())
    # Without keys, all are one client.
    share = settings.label_share if settings.keys() else 1.0
    ledger = LabelStore(link, room=settings.labels, days=settings.quality_days, share=share)
    forgetting = Forgetting(engine, store, store.forgotten, ledger, link, embedded=settings.redis_url is None)
    models.prepare.append(forgetting.prepare)
    catalog = AcceptedTypes(manifest.types)
    parser = RowParser(catalog, settings, clock)
    parking = Parking(int(settings.park_videos * settings.park_share), settings.park_ttl_s) if keys else None
    writer = GroupCommitQueue(
        store, commit_rows=settings.ingest_round_rows, queue_rows=settings.ingest_queue_rows, parking=parking
    )
    ingest = IngestHandler(parser, BatchDecoder(catalog, settings, clock), writer, metrics, turns, settings)
    videos = ForecastHandler(
        store,
        histories,
        engine,
        forgetting,
        ingest,
        parser,
        catalog,
        settings,
        metrics,
        max_horizon_us=manifest.max_horizon_us,
        max_id_length=settings.max_id_length,
    )
    limits = Limits(
        settings.max_body_bytes,
        settings.max_line_bytes,
        settings.body_deadline_ms / 1000,
        settings.max_body_values,
        turns,
    )
    audit = Audit(settings.audit)
    hosts = None if keys else Hosts([settings.host, *settings.allowed_hosts])
    budget = Budget(settings.body_memory_bytes)
    live = ForecastSubscriptions(
        engine.forecast,
        forecast_json.forecast_json,
        settings,
        in_flight=max(1, settings.batch_forecasts // 2),
        share=settings.stream_share if keys else 1,
    )
    producers = RowSockets(
        ingest,
        budget,
        audit,
        metrics,
        turns,
        window=settings.stream_window,
        frame_bytes=settings.max_body_bytes,
        values=settings.max_body_values,
        connections=settings.stream_producers,
        # Without keys, all are one client.
        share=settings.stream_share if keys else 1,
    )
    metrics.watch(lambda: _readings(engine, models))
    metrics.watch(models.readings)
    metrics.watch(lambda: [gauge("m3tr_ingest_queue_rows", "Rows waiting for the event store", writer.waiting_rows)])
    metrics.watch(
        lambda: [
            gauge("m3tr_stream_subscribers", "Clients that watch a forecast", live.subscribers),
            counter("m3tr_stream_forecasts", "Forecasts made for watching clients", live.forecasts),
            gauge("m3tr_stream_producers", "WebSocket connections that bring rows", producers.connections),
        ]
    )
    store_deadline_s = settings.store_deadline_ms / 1000
    changes = ChangeSubscriber(link.server, store_deadline_s)
    changes.listeners.append(live)
    if parking is not None:
        changes.listeners.append(parking)
    changes.listeners.append(forgetting)
    lifecycle = Lifecycle()
    readiness = Readiness(health, engine, lifecycle, settings)
    metrics.watch(readiness.readings)
    background: list[Background] = [health, readiness, changes, forgetting]
    if settings.ranking_forecasts:
        ranking = Ranking(engine, link, settings)
        changes.listeners.append(ranking)
        background.append(ranking)
        metrics.watch(ranking.readings)
    if settings.labels:
        background += quality_work(ledger, store.forgotten, store, link, models, changes, settings, metrics, clock)
    if settings.bank_after_s:
        maturing = BankAdmission(engine, store, link, settings, metrics, clock, bundle=settings.bundle)
        changes.listeners.append(maturing)
        background.append(maturing)
    if settings.retention_days:
        background.append(Retention(engine, store, ledger, link, settings, metrics, clock))
    if settings.ingest_stream:
        consumer = Consumer(
            link.server,
            ingest.take,
            metrics,
            deadline_s=store_deadline_s,
            claim_s=settings.ingest_claim_s,
            batch_rows=settings.max_batch_rows,
            forgotten=store.forgotten,
        )
        background.append(consumer)
    background.append(models)
    return Context(
        settings,
        metrics,
        keys,
        hosts,
        budget,
        audit,
        limits,
        turns,
        link,
        health,
        store,
        engine,
        ingest,
        videos,
        background,
        lifecycle,
        live,
        Listing(link),
        producers,
        Report(ledger, settings, clock),
        models,
        forgetting,
        readiness,
    )


def _readings(engine: Engine, models: ModelRegistry) -> Sequence[Metric]:
    pool = engine.active.pool
    return [
        counter("m3tr_state_cache_hits", "Forecasts that went on from a cached state", models.states("hits")),
        counter(
            "m3tr_state_cache_misses", "Forecasts that built their state from the histogram", models.states("misses")
        ),
        counter("m3tr_state_cache_evictions", "Cached states that made room for others", models.states("evictions")),
        gauge("m3tr_state_cache_used_slots", "Videos with a cached state", pool.used),
        gauge("m3tr_state_cache_capacity_slots", "Videos that can have a cached state", pool.capacity),
        counter("m3tr_forecasts_reused", "Forecasts given again, as nothing had changed", engine.recent.hits),
        gauge("m3tr_model_queue_forecasts", "Forecasts waiting for the model", engine.batcher.waiting),
    ]
