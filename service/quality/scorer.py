"""Scores forecasts whose outcome is there; each exactly once, whoever else does so."""

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
from service.background import Running
from service.metrics import Metrics
from service.problems import Unavailable
from service.quality.label import Label, metric_kinds
from service.quality.label_store import LabelStore, Settlement, encode_adaptive, parse_adaptive
from service.quality.outcomes import NEAR, outcome
from service.quality.scores import growth, sums
from service.settings import QualitySettings
from service.store.quarantine import Damaged
from service.store.redis.lease import Lease
from service.store.snapshot import Snapshot
from service.store.store import Store

log = structlog.get_logger(__name__)

_EVERY_S: Final = 2.0
_BATCH: Final = 16
"""Labels in one step: reading their videos keeps the loop for a few milliseconds."""
_AGAIN: Final = 50
"""A label without an outcome yet is looked at again after a fiftieth of its horizon."""

Fate = float | str
"""A count, or one of ``tally.UNSCORED``."""


class Scorer(Running):
    """One replica at a time does the work, by a lease; the ledger makes it exact where two of them do."""

    def __init__(
        self,
        ledger: LabelStore,
        store: Store,
        lease: Lease,
        settings: QualitySettings,
        metrics: Metrics,
        clock: Callable[[], int],
    ) -> None:
        self._ledger, self._store, self._lease = ledger, store, lease
        self._metrics, self._clock = metrics, clock
        self._grace_us = settings.label_grace_s * SECOND_US
        self._silence = False

    async def _ended(self) -> None:
        # Another replica goes on at once.
        if self._task is not None:
            await self._lease.give()

    async def sweep(self) -> None:
        """Score all that is due."""
        for column in range(N_COLUMNS):
            # Keys of one column that cannot be used do not keep the others waiting.
            with suppress(Unavailable):
                while labels := await self._ledger.due(column, self._clock(), _BATCH):
                    await self._score(column, labels)
                    if not await self._lease.take():
                        return

    async def _score(self, column: int, labels: Sequence[Label]) -> None:
        # Before the store is read: what it knows then, it has seen up to this time.
        now_us = self._clock()
        snapshots = await self._store.read_many(dict.fromkeys(label.video_id for label in labels))
        done: dict[tuple[str, str], list[tuple[Label, Fate]]] = defaultdict(list)
        again: dict[str, int] = {}
        for label in labels:
            try:
                fate = self._fate(label, snapshots[label.video_id], now_us)
            except Exception:
                log.exception("a forecast could not be scored", video_id=label.video_id)
                fate = "unlabelled"
            if fate == "later":
                again[label.key] = now_us + max(SECOND_US, label.horizon_us // _AGAIN)
            else:
                done[label.model_version, label.client].append((label, fate))
        await self._ledger.later(column, again)
        for (model, client), fates in done.items():
            await self._settle(column, model, client, fates, now_us)

    def _fate(self, label: Label, snapshot: Snapshot | Damaged | None, now_us: int) -> Fate:
        if not isinstance(snapshot, Snapshot) or snapshot.video.published_us != label.published_us:
            return "gone"
        series = snapshot.history.series
        if kinds := metric_kinds(label.metric, series):
            # A video that has no row yet is fed as the others are.
            self._silence = all(series[kind].mode == "events" for kind in kinds)
        found = outcome(label, snapshot, now_us, self._silence)
        if found == "later" and now_us <= label.target_us + NEAR * label.horizon_us + self._grace_us:
            return "later"
        return "unlabelled" if isinstance(found, str) else found

    async def _settle(
        self, column: int, model: str, client: str, fates: Sequence[tuple[Label, Fate]], now_us: int
    ) -> None:
        scored = [(label, fate) for label, fate in fates if not isinstance(fate, str)]
        labels = [label for label, _ in scored]
        added: dict[str, float] = defaultdict(float)
        before = after = await self._ledger.adaptive(model, client)
        if labels:
            y, said = growth(labels, [count for _, count in scored])
            added.update(sums(labels, y, said))
            rows = np.array([label.row for label in labels])
            stretch = np.array([label.stretch for label in labels])
            columns = np.full(len(labels), column)
            after = encode_adaptive(parse_adaptive(before).learned(rows, columns, reaches(y, said, stretch)))
        for label, fate in fates:
            if isinstance(fate, str):
                added[f"{label.row}:{column}:{fate}"] += 1
        settled = await self._ledger.settle(
            column, Settlement([label for label, _ in fates], added, before, after), now_us
        )
        if settled:
            for _, fate in fates:
                self._metrics.labels.labels(fate if isinstance(fate, str) else "scored").inc()

    async def _run(self) -> None:
        while True:
            try:
                if await self._lease.take():
                    await self.sweep()
            except Unavailable:
                pass
            except Exception:
                log.exception("forecasts could not be scored")
            await asyncio.sleep(_EVERY_S)
