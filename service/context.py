"""Holds the components of one running service, for routes, the application and the server."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from service.background import Background
from service.fair_turns import Turns
from service.forecasts.engine import Engine
from service.forgetting.forgetting import Forgetting
from service.http.audit import Audit
from service.http.auth import Keys
from service.http.bodies import Limits
from service.http.budget import Budget
from service.http.concurrency import ConcurrencyLimit
from service.http.connections import Connections
from service.http.hosts import Hosts
from service.http.load_shedding import Kind
from service.ingest.handler import IngestHandler
from service.ingest.websocket import RowSockets
from service.lifecycle import Lifecycle
from service.metrics import Metrics
from service.models.registry import ModelRegistry
from service.quality.report import QualityReport
from service.rankings.pages import RankingPages
from service.readiness import Readiness
from service.settings import Settings
from service.store.health import Health
from service.store.redis.connection import RedisConnection
from service.store.store import Store
from service.streaming.subscriptions import ForecastSubscriptions
from service.videos.handler import VideoHandler
from service.videos.predictions import ForecastHandler


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """The components of one service. ``service.wiring.build`` makes the context."""

    settings: Settings
    metrics: Metrics
    lifecycle: Lifecycle
    background: Sequence[Background]

    # Access control and load limits.
    keys: Keys
    hosts: Hosts | None
    """Allowed hosts of a service without API keys, or None for a service with API keys."""
    audit: Audit
    turns: Turns
    concurrency: Mapping[Kind, ConcurrencyLimit]
    connections: Connections
    limits: Limits
    budget: Budget

    # The event store.
    redis: RedisConnection
    health: Health
    store: Store

    # Models and forecasts.
    engine: Engine
    models: ModelRegistry
    forgetting: Forgetting
    readiness: Readiness

    # Request handlers.
    ingest: IngestHandler
    row_sockets: RowSockets
    videos: VideoHandler
    predictions: ForecastHandler
    subscriptions: ForecastSubscriptions
    rankings: RankingPages
    quality: QualityReport

    async def close_streams(self) -> None:
        """End all forecast subscriptions and row streams, because they never end by themselves.

        A server must call ``close_streams`` before it waits for its connections to end.
        """
        await self.subscriptions.close()
        await self.row_sockets.close()
