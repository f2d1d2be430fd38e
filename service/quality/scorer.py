"""Scores forecasts whose outcome is known. Each forecast is scored exactly once over all replicas."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

import numpy as np
import structlog

from model.engagement.bins import SECOND_US
from model.quantiles.adaptive import reaches
from model.quantiles.calibration import N_COLUMNS
from service.background import BackgroundTask
from service.metrics import Metrics
from service.problems import Unavailable
from service.quality.label import Label, metric_kinds
from service.quality.label_store import LabelStore, Settlement, encode_adaptive, parse_adaptive
from service.quality.outcomes import NEAR, outcome
from service.quality.scores import field, growth, sums
from service.settings import QualitySettings
from service.store.quarantine import Damaged
from service.store.redis.lease import Lease
from service.store.snapshot import Snapshot
from service.store.store import Store

log = structlog.get_logger(__name__)

_EVERY_S: Final = 2.0
_BATCH: Final = 16
"""Number of labels that are scored together. Reading their videos blocks the event loop for a few milliseconds."""
_AGAIN: Final = 50
"""A label that has no outcome yet is checked again after its horizon divided by this number."""

Verdict = float | str
"""The outcome as a count, or one of ``scores.UNSCORED``, or ``later``."""


class Scorer(BackgroundTask):
    """Scores labels. A lease ensures that only one replica at a time does so.

    Even if two replicas ever score at once, the label store counts each label only once.
    """

    def __init__(
        self,
        label_store: LabelStore,
        store: Store,
        lease: Lease,
        settings: QualitySettings,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._label_store, self._store, self._lease = label_store, store, lease
        self._metrics, self._clock = metrics, clock
        self._grace_us = settings.label_grace_s * SECOND_US
        self._silence: dict[str, bool] = {}

    async def _ended(self) -> None:
        # Release the lease, so that a different replica can continue at once.
        if self._task is not None:
            await self._lease.release()

    async def sweep(self) -> None:
        """Score all labels that are due."""
        for bucket in range(N_COLUMNS):
            # If the keys of one horizon bucket are unusable, the other buckets must still be scored.
            with suppress(Unavailable):
                while labels := await self._label_store.due(bucket, self._clock(), _BATCH):
                    await self._score(bucket, labels)
                    if not await self._lease.acquire():
                        return

    async def _score(self, bucket: int, labels: Sequence[Label]) -> None:
        # Read the clock before the store, so that the data read from the store is complete up to this time.
        now_us = self._clock()
        snapshots = await self._store.read_many(dict.fromkeys(label.video_id for label in labels))
        done: dict[tuple[str, str, str], list[tuple[Label, Verdict]]] = defaultdict(list)
        again: dict[str, int] = {}
        for label in labels:
            try:
                verdict = self._verdict(label, snapshots[label.video_id], now_us)
            except Exception:
                log.exception("a forecast could not be scored", video_id=label.video_id)
                verdict = "unlabelled"
            if verdict == "later":
                again[label.key] = now_us + max(SECOND_US, label.horizon_us // _AGAIN)
            else:
                done[label.model_version, label.metric, label.client].append((label, verdict))
        await self._label_store.later(bucket, again)
        for verdicts in done.values():
            await self._settle(bucket, verdicts, now_us)

    def _verdict(self, label: Label, snapshot: Snapshot | Damaged | None, now_us: int) -> Verdict:
        if not isinstance(snapshot, Snapshot) or snapshot.video.published_us != label.published_us:
            return "gone"
        series = snapshot.history.series
        if kinds := metric_kinds(label.metric, series):
            # Remember whether events or counters feed this metric. The next video without rows is assumed to be fed in the same way.
            self._silence[label.metric] = all(series[kind].mode == "events" for kind in kinds)
        found = outcome(label, snapshot, now_us, self._silence.get(label.metric, False))
        if found == "later" and now_us <= label.target_us + NEAR * label.horizon_us + self._grace_us:
            return "later"
        return "unlabelled" if isinstance(found, str) else found

    async def _settle(self, bucket: int, verdicts: Sequence[tuple[Label, Verdict]], now_us: int) -> None:
        """Settle labels of one model, metric and client."""
        first = verdicts[0][0]
        scored = [(label, verdict) for label, verdict in verdicts if not isinstance(verdict, str)]
        labels = [label for label, _ in scored]
        added: dict[str, float] = defaultdict(float)
        before = after = await self._label_store.adaptive(first.model_version, first.metric, first.client)
        if labels:
            y, predicted = growth(labels, [count for _, count in scored])
            added.update(sums(labels, y, predicted))
            ages = np.array([label.age_bucket for label in labels])
            stretch = np.array([label.stretch for label in labels])
            buckets = np.full(len(labels), bucket)
            after = encode_adaptive(
                parse_adaptive(before).learned(ages, buckets, reaches(y, predicted[:, 1:], stretch))
            )
        for label, verdict in verdicts:
            if isinstance(verdict, str):
                added[field(label, verdict)] += 1
        settled = await self._label_store.settle(
            bucket, Settlement([label for label, _ in verdicts], added, before, after), now_us
        )
        if settled:
            for _, verdict in verdicts:
                self._metrics.labels.labels(verdict if isinstance(verdict, str) else "scored").inc()

    async def _run(self) -> None:
        while True:
            try:
                if await self._lease.acquire():
                    await self.sweep()
            except Unavailable:
                pass
            except Exception:
                log.exception("forecasts could not be scored")
            await asyncio.sleep(_EVERY_S)
