"""Removes deleted videos from this service's memory, from every replica, and from the store.

    DELETE -> tombstone -> banks in memory -> the video's keys, ranked lists, labels -> streams -> the log of the embedded store
                 |
                 +-> every replica applies new tombstones within a second, and missed ones to each bank when the bank is next opened

A tombstone records that a video was deleted. Tombstones are durable. Therefore a deletion is completed even if a message is lost or a
replica is killed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from model.bank.tombstone import tombstone
from model.errors import BankError
from service.background import BackgroundTask
from service.deployment.deployment import Deployment
from service.forecasts.engine import Engine
from service.forgetting.sweep import Sweep
from service.problems import Problem, Unavailable
from service.quality.label_store import LabelStore
from service.store import keys
from service.store.change_publisher import Change
from service.store.redis.connection import RedisConnection
from service.store.redis.lease import Lease
from service.store.redis.safety import field_of
from service.store.store import Store

log = structlog.get_logger(__name__)

EVERY_S: Final = 1.0
"""Seconds between two checks for new tombstones."""
SWEEP_WAIT_S: Final = 2.0
"""Maximum time in seconds that a deletion waits for the sweep of the streams. The sweep continues after that."""
REWRITE_S: Final = 60.0
"""Minimum time in seconds between two rewrites of the embedded store's log."""
LAST_REWRITE_S: Final = 2.0
"""Maximum time in seconds that a stopping service waits for its final rewrite of the log."""
SETTLED_S: Final = 10
"""Time in seconds after a deletion. After this time, all writes that were in progress at the deletion have ended."""
_PAUSE_FACTOR: Final = 20
"""Pause after a rewrite, as a multiple of the rewrite's duration. The pause makes slow rewrites rarer."""
_POLL_S: Final = 0.05
_OVERLAP_US: Final = 60_000_000
"""Maximum time in microseconds by which the clock of a new Redis primary may be behind the previous primary's clock."""
_LEASE_S: Final = 30.0
_CHUNK: Final = 1000


class Forgetting(BackgroundTask):
    """Deletes videos, and applies the tombstones of videos that other replicas deleted."""

    def __init__(
        self,
        engine: Engine,
        deployments: Callable[[], Sequence[Deployment]],
        store: Store,
        label_store: LabelStore,
        redis: RedisConnection,
        *,
        embedded: bool,
    ) -> None:
        self._engine, self._deployments = engine, deployments
        self._store, self._forgotten, self._label_store = store, store.forgotten, label_store
        self._redis, self._embedded = redis, embedded
        self._lease = Lease(redis, keys.FORGOTTEN_LEASE, _LEASE_S)
        self._applied_us: dict[Deployment, int] = {}
        self._dropped_us = 0
        self._swept_us = 0
        self._wake, self._swept = asyncio.Event(), asyncio.Condition()
        self._rewriting_us = self._rewritten_us = 0
        self._rewrite_began_s = float("-inf")
        self._failing = False

    def changed(self, changes: Sequence[Change]) -> None:
        """Wake the check for tombstones if a video was deleted."""
        if any(version == 0 for _, version in changes):
            self._wake.set()

    def missed(self) -> None:
        """Wake the check for tombstones, because changes may have been missed."""
        self._wake.set()

    async def delete(self, video_id: str) -> bool:
        """Delete everything about a video. Return whether the store had the video.

        Raises:
            BankError: a bank in memory does not answer. The tombstone is stored, so the video is removed once the bank answers again.
            Unavailable: the store does not answer.
        """
        at_us = await self._forgotten.bury(video_id)
        for deployment in self._deployments():
            await asyncio.to_thread(deployment.bank.remove, [video_id])
        existed = await self._store.forget(video_id)
        await self._label_store.forget(video_id)
        await self._engine.forget(video_id)
        self._wake.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(SWEEP_WAIT_S), self._swept:
                await self._swept.wait_for(lambda: self._swept_us >= at_us)
        return existed

    async def prepare(self, deployment: Deployment) -> None:
        """Apply tombstones before a model's first forecast.

        A failure of the bank is only logged, because a bank that does not answer cannot return deleted videos as neighbours.
        """
        try:
            await self.apply_tombstones(deployment)
        except BankError as error:
            log.warning("a bank does not answer and may still hold deleted videos", reason=str(error))

    async def apply_tombstones(self, deployment: Deployment) -> None:
        """Remove from a model's bank the videos that were deleted since the bank was last open.

        Raises Unavailable if the store does not answer, or BankError if the bank does not answer.
        """
        before = self._applied_us.get(deployment)
        if before is None:
            before = await self._forgotten.obeyed(bank_identity(deployment))
        # If the bank is open in this process for the first time, apply all tombstones, because its videos may come from a copied bank.
        first = deployment not in self._applied_us
        found = await self._forgotten.since(-1 if first else before - _OVERLAP_US)
        due = found if first else [mark for mark in found if mark[1] > before - _OVERLAP_US]
        if not due:
            self._applied_us.setdefault(deployment, before)
            return
        lifted = await self._forgotten.lifted()
        marks = [mark for mark, at_us in due if mark not in lifted or at_us > before]
        newest_us = max(at_us for _, at_us in due)
        for start in range(0, len(marks), _CHUNK):
            await asyncio.to_thread(deployment.bank.forget, marks[start : start + _CHUNK])
        if newest_us > before:
            await self._forgotten.obey(bank_identity(deployment), newest_us)
        self._applied_us[deployment] = max(before, newest_us)

    async def run_once(self) -> None:
        """Apply new tombstones once to banks, caches, streams, and the embedded store's log."""
        deployments = self._deployments()
        for closed in [held for held in self._applied_us if held not in deployments]:
            del self._applied_us[closed]
        fault: BankError | None = None
        for deployment in deployments:
            try:
                await self.apply_tombstones(deployment)
            except BankError as error:
                fault = error
        await self._drop()
        await self._sweep()
        await self._rewrite()
        if fault is not None:
            raise fault

    async def _drop(self) -> None:
        """Remove from this process's caches the videos that other replicas deleted."""
        if self._forgotten.newest_us <= self._dropped_us:
            return
        newest_us = int(self._forgotten.newest_us)
        found = dict(await self._forgotten.since(self._dropped_us - _OVERLAP_US))
        names = self._engine.cached()
        marked = await asyncio.to_thread(lambda: [name for name in names if tombstone(name) in found])
        for name in marked:
            await self._engine.forget(name)
        self._engine.cache.clear()
        self._dropped_us = newest_us

    async def _sweep(self) -> None:
        if self._forgotten.newest_us <= self._swept_us:
            return
        newest_us = int(self._forgotten.newest_us)
        swept_us = await self._forgotten.swept()
        if due := await self._forgotten.since(swept_us):
            if not await self._lease.acquire():
                return
            await Sweep(self._redis, dict(due)).run()
            swept_us = max(at_us for _, at_us in due)
            await self._forgotten.sweep(swept_us)
        else:
            # No tombstone newer than ``swept_us`` is stored. If ``newest_us`` is newer, it was read before the store was emptied.
            swept_us = max(swept_us, newest_us)
        async with self._swept:
            self._swept_us = swept_us
            self._swept.notify_all()

    async def _rewrite(self) -> None:
        """If a rewrite of the embedded store's log is due, start the rewrite.

        Without rewrites, the log would keep every command that named a deleted video.

        The first rewrite starts at once. A second rewrite follows later, because writes in progress at the deletion may have named the
        video again. By the time of the second rewrite, those writes have ended and have been undone.
        """
        if not self._embedded or self._rewritten_us >= self._swept_us:
            return
        status = (await self._redis.pipeline("sweep", [["INFO", "persistence"]]))[0]
        if field_of(status, "aof_enabled") != "1" or field_of(status, "aof_rewrite_in_progress") != "0":
            return
        if self._rewriting_us > self._rewritten_us and field_of(status, "aof_last_bgrewrite_status") == "ok":
            self._rewritten_us = self._rewriting_us
            await self._forgotten.rewrite(self._rewritten_us)
        else:
            self._rewritten_us = max(self._rewritten_us, await self._forgotten.rewritten())
        pause_s = max(REWRITE_S, _PAUSE_FACTOR * float(field_of(status, "aof_last_rewrite_time_sec") or 0))
        if self._rewritten_us < self._swept_us and time.monotonic() >= self._rewrite_began_s + pause_s:
            await self._begin_rewrite()

    async def _begin_rewrite(self) -> None:
        clock, _ = await self._redis.pipeline("sweep", [["TIME"], ["BGREWRITEAOF"]])
        self._rewrite_began_s = time.monotonic()
        self._rewriting_us = min(self._swept_us, (int(clock[0]) - SETTLED_S) * 1_000_000)

    async def _ended(self) -> None:
        with suppress(Unavailable):
            await self._lease.release()
            if self._embedded and self._rewritten_us < self._swept_us:
                # Once the service has stopped, its files must not contain deleted videos.
                await self._begin_rewrite()
                for _ in range(round(LAST_REWRITE_S / _POLL_S)):
                    await asyncio.sleep(_POLL_S)
                    status = (await self._redis.pipeline("sweep", [["INFO", "persistence"]]))[0]
                    if field_of(status, "aof_rewrite_in_progress") == "0":
                        return

    async def _run(self) -> None:
        while True:
            self._wake.clear()
            try:
                await self.run_once()
                self._failing = False
            except (Problem, BankError) as error:
                if not self._failing:
                    log.warning("the removal of deleted videos is delayed", reason=str(error))
                self._failing = True
            except Exception:
                log.exception("the removal of deleted videos failed")
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._wake.wait()


def bank_identity(deployment: Deployment) -> str:
    """Return a name that identifies a model's bank.

    The name of an embedded bank begins with a digest of its folder and of the time when it was filled. The name of a bank on a server
    begins with ``server``. The first 16 characters of the model version follow.
    """
    folder: Path | None = deployment.bank.folder
    if folder is None:
        return f"server-{deployment.version[:16]}"
    marker = folder.resolve() / "bank.json"
    filled = marker.stat().st_mtime_ns if marker.exists() else 0
    text = f"{uuid.getnode()} {marker} {filled}"
    return f"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}-{deployment.version[:16]}"
