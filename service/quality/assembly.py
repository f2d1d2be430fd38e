"""The parts that keep, score and adapt, put together."""

from __future__ import annotations

from collections.abc import Callable

from service.background import Background
from service.metrics import Metrics
from service.models.registry import ModelRegistry
from service.quality.adaptation import Adaptation
from service.quality.label_store import LabelStore
from service.quality.sampler import Sampler
from service.quality.scorer import Scorer
from service.settings import Settings
from service.store.change_subscriber import ChangeSubscriber
from service.store.forgotten import Forgotten
from service.store.keys import LABELS_LEASE, SAMPLING_LEASE
from service.store.redis.connection import RedisConnection
from service.store.redis.lease import Lease
from service.store.store import Store

_LEASE_S = 15


def quality_work(
    ledger: LabelStore,
    forgotten: Forgotten,
    store: Store,
    link: RedisConnection,
    models: ModelRegistry,
    changes: ChangeSubscriber,
    settings: Settings,
    metrics: Metrics,
    clock: Callable[[], int],
) -> list[Background]:
    """The background work on labels; the shadow's answers are observed, and ``changes`` listened to, from now on."""
    engine, shadow = models.engine, models.shadow
    adaptation = Adaptation(ledger, lambda: engine.active, settings, clock, lambda: shadow.deployment)
    models.prepare.append(adaptation.apply)
    turn = Lease(link, SAMPLING_LEASE, _LEASE_S)
    sampler = Sampler(ledger, forgotten, adaptation, engine, store, turn, settings, metrics, clock)
    changes.listeners.append(sampler)
    shadow.observers.append(sampler.shadowed)
    metrics.watch(adaptation.readings)
    return [adaptation, sampler, Scorer(ledger, store, Lease(link, LABELS_LEASE, _LEASE_S), settings, metrics, clock)]
