"""Builds one service. ``build`` makes every component. Each function below ``build`` connects one kind of event to its observers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from model.content.text import SentenceEncoder
from service.background import Background
from service.bank.admission import BankAdmission
from service.context import Context
from service.deployment.deployment import Deployment
from service.deployment.loading import load_model
from service.embedded_store_monitor import EmbeddedStoreMonitor
from service.event_loop_lag import EventLoopLag
from service.fair_turns import Turns
from service.forecasts.engine import Engine
from service.forecasts.forecast_cache import ForecastCache
from service.forecasts.forecast_json import forecast_json
from service.forgetting.forgetting import Forgetting
from service.forgetting.retention import Retention
from service.http.audit import Audit
from service.http.auth import Keys
from service.http.bodies import Limits
from service.http.budget import Budget
from service.http.concurrency import ConcurrencyLimit
from service.http.connections import Connections, connection_limit
from service.http.hosts import Hosts
from service.http.load_shedding import Kind, concurrency_limits, load_readings
from service.ingest.accepted_types import AcceptedTypes
from service.ingest.batch_decoder import BatchDecoder
from service.ingest.group_commit import GroupCommitQueue
from service.ingest.handler import IngestHandler
from service.ingest.parking import Parking
from service.ingest.row_parser import RowParser
from service.ingest.stream_consumer import Consumer
from service.ingest.websocket import RowSockets
from service.lifecycle import Lifecycle
from service.metrics import Metrics, counter, gauge, info
from service.models.active_version import ActiveVersion
from service.models.registry import ModelRegistry
from service.models.shadow import Shadow
from service.quality.adaptation import Adaptation
from service.quality.label_store import LabelStore
from service.quality.report import QualityReport
from service.quality.sampler import Sampler
from service.quality.scorer import Scorer
from service.rankings.pages import RankingPages
from service.rankings.updater import RankingUpdater
from service.readiness import Readiness
from service.settings import Settings
from service.store.change_subscriber import ChangeSubscriber
from service.store.functions import connect
from service.store.health import Health
from service.store.keys import LABELS_LEASE, SAMPLING_LEASE
from service.store.redis.connection import RedisConnection
from service.store.redis.embedded_server import EmbeddedServer
from service.store.redis.lease import Lease
from service.store.snapshot_cache import SnapshotCache
from service.store.store import Store
from service.streaming.subscriptions import ForecastSubscriptions
from service.times import now_us
from service.version import service_version
from service.videos.handler import VideoHandler
from service.videos.predictions import ForecastHandler

_QUALITY_LEASE_S = 15


def new_metrics(settings: Settings) -> Metrics:
    """Return metrics whose duration histograms end at the deadlines in these settings."""
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
    server: EmbeddedServer | None = None,
    timer: Callable[[], float] = time.perf_counter,
) -> Context:
    """Build a service around the deployment that is active first.

    ``clock`` returns the time of day in microseconds since 1970. ``timer`` returns a time in seconds, to measure how long clients use the
    event loop. ``server`` is the embedded event store, which is restarted when it dies.
    """
    manifest = deployment.forecaster.manifest
    store_deadline_s = settings.store_deadline_ms / 1000
    lifecycle = Lifecycle()

    # Access control and load limits.
    keys = Keys(settings.keys(), lambda reason: metrics.refused_keys.labels(reason).inc())
    concurrency = concurrency_limits(settings)
    turns = Turns(timer, others=concurrency["reads"].others)
    limits = Limits(
        settings.max_body_bytes,
        settings.max_line_bytes,
        settings.body_deadline_ms / 1000,
        settings.max_body_values,
        turns,
    )
    budget = Budget(settings.body_memory_bytes)
    audit = Audit(settings.audit)
    connections = Connections(connection_limit(settings, settings.store_connections))

    # The event store.
    redis = connect(redis_url, metrics, deadline_s=store_deadline_s, connections=settings.store_connections)
    health = Health(redis, settings, settings.future_skew_s)
    store = Store(redis, settings, metrics, manifest.types, turns)
    changes = ChangeSubscriber(redis.server, store_deadline_s)
    snapshots = SnapshotCache(store, settings.cache_videos)

    # Models and forecasts.
    cache = ForecastCache(settings.cache_videos, settings.forecast_reuse_ms * 1000)
    engine = Engine(deployment, snapshots, cache, settings, metrics, clock)
    shadow = Shadow(engine, settings, metrics)
    active_version = ActiveVersion(redis, enabled=settings.bundles is not None)
    models = ModelRegistry(engine, shadow, active_version, _loader(settings, metrics), settings, metrics)
    readiness = Readiness(health, engine, lifecycle, settings)

    # Without API keys, all requests count as one client, which may use the whole of each limit.
    labels_share = settings.label_share if keys else 1.0
    stream_share = settings.stream_share if keys else 1.0
    label_store = LabelStore(redis, capacity=settings.labels, days=settings.quality_days, share=labels_share)
    forgetting = Forgetting(engine, models.deployments, store, label_store, redis, embedded=settings.redis_url is None)

    # Request handlers.
    accepted_types = AcceptedTypes(manifest.types)
    parser = RowParser(accepted_types, settings, clock)
    parking = Parking(int(settings.park_videos * settings.park_share), settings.park_ttl_s) if keys else None
    queue = GroupCommitQueue(
        store, commit_rows=settings.ingest_round_rows, queue_rows=settings.ingest_queue_rows, parking=parking
    )
    decoder = BatchDecoder(accepted_types, settings, clock)
    ingest = IngestHandler(parser, decoder, queue, metrics, turns, settings)
    row_sockets = RowSockets(
        ingest,
        budget,
        audit,
        metrics,
        turns,
        window=settings.stream_window,
        frame_bytes=settings.max_body_bytes,
        values=settings.max_body_values,
        connections=settings.stream_producers,
        share=stream_share,
    )
    videos = VideoHandler(
        store,
        snapshots,
        forgetting,
        parser,
        accepted_types,
        metrics,
        max_id_length=settings.max_id_length,
        declared=lambda: engine.active.forecaster.manifest.schema.attributes,
    )
    predictions = ForecastHandler(
        store, snapshots, engine, videos, ingest, parser, settings, max_horizon_us=manifest.max_horizon_us
    )
    subscriptions = ForecastSubscriptions(
        engine.forecast,
        forecast_json,
        settings,
        in_progress=max(1, settings.batch_forecasts // 2),
        share=stream_share,
    )

    # Background work. Work that a setting disables is None.
    quality = _quality(settings, label_store, store, redis, engine, shadow, metrics, clock) if settings.labels else None
    ranking = RankingUpdater(engine, redis, settings) if settings.ranking_forecasts else None
    admission = None
    if settings.bank_after_s:
        admission = BankAdmission(engine, store, redis, settings, metrics, clock, bundle=settings.bundle)
    retention = None
    if settings.retention_days:
        retention = Retention(engine, store, label_store, redis, settings, metrics, clock)
    consumer = None
    if settings.ingest_stream:
        consumer = Consumer(
            redis.server,
            ingest.take,
            metrics,
            deadline_s=store_deadline_s,
            claim_s=settings.ingest_claim_s,
            batch_rows=settings.max_batch_rows,
            forgotten=store.forgotten,
        )
    optional: list[Background | None] = [ranking]
    optional += [quality.adaptation, quality.sampler, quality.scorer] if quality is not None else []
    optional += [admission, retention, consumer]
    # Background work is stopped in reverse order.
    background: list[Background] = [EventLoopLag(metrics), health, readiness, changes, forgetting]
    background += [part for part in optional if part is not None]
    background.append(models)
    if server is not None:
        background.append(EmbeddedStoreMonitor(server, metrics))

    # Events and their observers.
    sampler = quality.sampler if quality is not None else None
    _observe_changes(changes, subscriptions, parking, forgetting, ranking, sampler, admission)
    _observe_forecasts(engine, shadow, sampler)
    _prepare_models(models, forgetting, quality)
    _follow_active_version(active_version, models)
    _count_deaths(background, engine, metrics)
    _watch_parts(metrics, engine, models, health, readiness, ranking, quality)
    _watch_load(metrics, connections, concurrency, budget, queue, subscriptions, row_sockets)

    return Context(
        settings=settings,
        metrics=metrics,
        lifecycle=lifecycle,
        background=background,
        keys=keys,
        hosts=None if keys else Hosts([settings.host, *settings.allowed_hosts]),
        audit=audit,
        turns=turns,
        concurrency=concurrency,
        connections=connections,
        limits=limits,
        budget=budget,
        redis=redis,
        health=health,
        store=store,
        engine=engine,
        models=models,
        forgetting=forgetting,
        readiness=readiness,
        ingest=ingest,
        row_sockets=row_sockets,
        videos=videos,
        predictions=predictions,
        subscriptions=subscriptions,
        rankings=RankingPages(redis),
        quality=QualityReport(label_store, settings, clock),
    )


@dataclass(frozen=True, slots=True)
class _Quality:
    """The tasks that store and score labels, and that adapt the intervals."""

    adaptation: Adaptation
    sampler: Sampler
    scorer: Scorer


def _quality(
    settings: Settings,
    label_store: LabelStore,
    store: Store,
    redis: RedisConnection,
    engine: Engine,
    shadow: Shadow,
    metrics: Metrics,
    clock: Callable[[], int],
) -> _Quality:
    adaptation = Adaptation(label_store, lambda: engine.active, settings, clock, lambda: shadow.deployment)
    sampling = Lease(redis, SAMPLING_LEASE, _QUALITY_LEASE_S)
    scoring = Lease(redis, LABELS_LEASE, _QUALITY_LEASE_S)
    return _Quality(
        adaptation,
        Sampler(label_store, adaptation, engine, store, sampling, settings, metrics, clock),
        Scorer(label_store, store, scoring, settings, metrics, clock),
    )


def _loader(settings: Settings, metrics: Metrics) -> Callable[[Path, SentenceEncoder], Deployment]:
    return lambda folder, encoder: load_model(settings, settings, metrics, folder, encoder)


def _observe_changes(
    changes: ChangeSubscriber,
    subscriptions: ForecastSubscriptions,
    parking: Parking | None,
    forgetting: Forgetting,
    ranking: RankingUpdater | None,
    sampler: Sampler | None,
    admission: BankAdmission | None,
) -> None:
    """Register the observers of the change stream. The stream reports videos that have a new version or were deleted."""
    # Subscribers get a new forecast.
    changes.on_change(subscriptions)
    if parking is not None:
        # Parked rows of registered and deleted videos no longer count towards their client's share.
        changes.on_change(parking)
    # A deletion by a different replica is applied at once.
    changes.on_change(forgetting)
    if ranking is not None:
        # A changed video is ranked again.
        changes.on_change(ranking)
    if sampler is not None:
        # Forecasts to be scored are planned for a new video.
        changes.on_change(sampler)
    if admission is not None:
        # The admission of a new video is scheduled.
        changes.on_change(admission)


def _observe_forecasts(engine: Engine, shadow: Shadow, sampler: Sampler | None) -> None:
    """Register the observers of forecasts that are made from a video's newest history."""
    # The shadow model repeats the forecast.
    engine.on_forecast(shadow.observe)
    if sampler is not None:
        # The shadow's forecast becomes a label if the active model's forecast became one.
        shadow.on_forecast(sampler.shadowed)


def _prepare_models(models: ModelRegistry, forgetting: Forgetting, quality: _Quality | None) -> None:
    """Register the preparations that a model needs before its first forecast that is served, compared or scored."""
    # Deleted videos are removed from the model's bank.
    models.before_first_forecast(forgetting.prepare)
    if quality is not None:
        # The model's intervals get their adaptive stretch.
        models.before_first_forecast(quality.adaptation.apply)


def _follow_active_version(active_version: ActiveVersion, models: ModelRegistry) -> None:
    """Let the registry follow the stored active version, which is polled."""
    active_version.on_poll(models.follow)


def _count_deaths(background: list[Background], engine: Engine, metrics: Metrics) -> None:
    """Count every failure of a background task."""

    def count(name: str) -> None:
        metrics.task_deaths.labels(name).inc()

    engine.batcher.on_death = count
    for part in background:
        for task in part.tasks:
            task.on_death = count


def _watch_parts(
    metrics: Metrics,
    engine: Engine,
    models: ModelRegistry,
    health: Health,
    readiness: Readiness,
    ranking: RankingUpdater | None,
    quality: _Quality | None,
) -> None:
    """Register metrics of the store, the models and background work. The metrics are read when Prometheus scrapes."""
    build_text = "Versions of the service and of the active model"
    metrics.watch(
        lambda: [info("m3tr_build", build_text, version=service_version(), model_version=engine.active.version)]
    )
    metrics.watch(engine.readings)
    metrics.watch(models.readings)
    metrics.watch(health.readings)
    metrics.watch(readiness.readings)
    if ranking is not None:
        metrics.watch(ranking.readings)
    if quality is not None:
        metrics.watch(quality.adaptation.readings)


def _watch_load(
    metrics: Metrics,
    connections: Connections,
    concurrency: Mapping[Kind, ConcurrencyLimit],
    budget: Budget,
    queue: GroupCommitQueue,
    subscriptions: ForecastSubscriptions,
    row_sockets: RowSockets,
) -> None:
    """Register metrics of connections, requests and queues. The metrics are read when Prometheus scrapes."""
    metrics.watch(connections.readings)
    metrics.watch(lambda: load_readings(concurrency, budget))
    metrics.watch(
        lambda: [
            gauge("m3tr_ingest_queue_rows", "Rows waiting for the event store", queue.waiting_rows),
            gauge("m3tr_stream_subscribers", "Clients subscribed to a forecast", subscriptions.subscribers),
            counter("m3tr_stream_forecasts", "Forecasts made for subscribers", subscriptions.forecasts),
            gauge("m3tr_stream_producers", "WebSocket connections that send rows", row_sockets.connections),
        ]
    )
