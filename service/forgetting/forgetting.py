"""Forgets deleted videos, here and in every replica.

    DELETE -> tombstone -> banks in memory -> the video's keys, lists, labels -> streams -> the log of the embedded store
                 |
                 +-> every replica, within a second, and every bank at its next opening: obeys the tombstones it has not obeyed

A tombstone is durable, so nothing of this depends on a message that may be lost, nor on a process that lives long enough.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from model.bank.tombstone import tombstone
from model.errors import BankError
from service.background import Running
from service.deployment.deployment import Deployment
from service.forecasts.engine import Engine
from service.forgetting.sweep import Sweep
from service.problems import Problem, Unavailable
from service.quality.label_store import LabelStore
from service.store import keys
from service.store.change_publisher import Change
from service.store.forgotten import Forgotten
from service.store.redis.connection import RedisConnection
from service.store.redis.lease import Lease
from service.store.redis.safety import field_of
from service.store.store import Store

log = structlog.get_logger(__name__)

EVERY_S: Final = 1.0
"""Seconds between two looks at the tombstones."""
PATIENCE_S: Final = 2.0
"""Seconds that a deletion waits for the streams to be swept; they are in any case."""
REWRITE_S: Final = 60.0
"""Seconds between two rewrites of the embedded store's log, at least."""
LAST_REWRITE_S: Final = 2.0
"""Seconds for which the service's end waits for the last one."""
SETTLED_S: Final = 10
"""Seconds after a deletion by which nobody writes of the video any more."""
_SHARE: Final = 20
"""A rewrite that takes long is made less often: for a twentieth of the time at most."""
_POLL_S: Final = 0.05
_OVERLAP_US: Final = 60_000_000
"""A new primary's clock may be behind by so much."""
_LEASE_S: Final = 30.0
_CHUNK: Final = 1000


class Forgetting(Running):
    """A listener to changes, a task that obeys tombstones, and the deletion itself."""

    def __init__(
        self,
        engine: Engine,
        store: Store,
        forgotten: Forgotten,
        ledger: LabelStore,
        link: RedisConnection,
        *,
        embedded: bool,
    ) -> None:
        self._engine, self._store, self._forgotten, self._ledger = engine, store, forgotten, ledger
        self._link, self._embedded = link, embedded
        self._lease = Lease(link, keys.FORGOTTEN_LEASE, _LEASE_S)
        self._obeyed_us: dict[Deployment, int] = {}
        self._dropped_us = 0
        self._swept_us = 0
        self._news, self._swept = asyncio.Event(), asyncio.Condition()
        self._rewriting_us = self._rewritten_us = 0
        self._began_s = float("-inf")
        self._failing = False

    def changed(self, changes: Sequence[Change]) -> None:
        """Look at once, where a video was deleted."""
        if any(version == 0 for _, version in changes):
            self._news.set()

    def missed(self) -> None:
        """Look at once."""
        self._news.set()

    async def delete(self, video_id: str) -> bool:
        """Forget everything about a video; whether the store knew it.

        Raises:
            BankError: a bank in memory does not answer. The tombstone is there: it forgets the video as soon as it does.
            Unavailable: the store does not answer.
        """
        at_us = await self._forgotten.bury(video_id)
        await self._engine.forget_neighbour(video_id)
        gone = await self._store.forget(video_id)
        await self._ledger.forget(video_id)
        await self._engine.forget(video_id)
        self._news.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_S), self._swept:
                await self._swept.wait_for(lambda: self._swept_us >= at_us)
        return gone

    async def prepare(self, deployment: Deployment) -> None:
        """``obey`` before a model's first forecast; a bank that does not answer gives no neighbours either."""
        try:
            await self.obey(deployment)
        except BankError as error:
            log.warning("a bank does not answer and may know deleted videos", reason=str(error))

    async def obey(self, deployment: Deployment) -> None:
        """Take out of a model's bank what was deleted since it was open last; raises Unavailable, or BankError."""
        before = self._obeyed_us.get(deployment)
        if before is None:
            before = await self._forgotten.obeyed(place_of(deployment))
        # From the beginning where it was not open here yet: what it holds may have come by another way.
        first = deployment not in self._obeyed_us
        found = await self._forgotten.since(-1 if first else before - _OVERLAP_US)
        due = found if first else [mark for mark in found if mark[1] > before - _OVERLAP_US]
        if not due:
            self._obeyed_us.setdefault(deployment, before)
            return
        lifted = await self._forgotten.lifted()
        marks = [mark for mark, at_us in due if mark not in lifted or at_us > before]
        newest_us = max(at_us for _, at_us in due)
        for start in range(0, len(marks), _CHUNK):
            await asyncio.to_thread(deployment.bank.forget, marks[start : start + _CHUNK])
        if newest_us > before:
            await self._forgotten.obey(place_of(deployment), newest_us)
        self._obeyed_us[deployment] = max(before, newest_us)

    async def round(self) -> None:
        """Look at the tombstones once, and do all that they ask for."""
        deployments = self._engine.deployments()
        for gone in [held for held in self._obeyed_us if held not in deployments]:
            del self._obeyed_us[gone]
        fault: BankError | None = None
        for deployment in deployments:
            try:
                await self.obey(deployment)
            except BankError as error:
                fault = error
        await self._drop()
        await self._sweep()
        await self._rewrite()
        if fault is not None:
            raise fault

    async def _drop(self) -> None:
        """Drop from this process's caches what was deleted elsewhere."""
        if self._forgotten.newest_us <= self._dropped_us:
            return
        newest_us = int(self._forgotten.newest_us)
        found = dict(await self._forgotten.since(self._dropped_us - _OVERLAP_US))
        names = self._engine.cached()
        marked = await asyncio.to_thread(lambda: [name for name in names if tombstone(name) in found])
        for name in marked:
            await self._engine.forget(name)
        self._engine.recent.clear()
        self._dropped_us = newest_us

    async def _sweep(self) -> None:
        if self._forgotten.newest_us <= self._swept_us:
            return
        newest_us = int(self._forgotten.newest_us)
        swept_us = await self._forgotten.swept()
        if due := await self._forgotten.since(swept_us):
            if not await self._lease.take():
                return
            await Sweep(self._link, dict(due)).run()
            swept_us = max(at_us for _, at_us in due)
            await self._forgotten.sweep(swept_us)
        else:
            # Nothing is later: what is known here of later ones is of a store that was emptied.
            swept_us = max(swept_us, newest_us)
        async with self._swept:
            self._swept_us = swept_us
            self._swept.notify_all()

    async def _rewrite(self) -> None:
        """Let the embedded store write its log anew, which else keeps every command that ever named a video.

        At once, and again later: by then, who was about to write of the video has, and has taken it back.
        """
        if not self._embedded or self._rewritten_us >= self._swept_us:
            return
        told = (await self._link.pipeline("sweep", [["INFO", "persistence"]]))[0]
        if field_of(told, "aof_enabled") != "1" or field_of(told, "aof_rewrite_in_progress") != "0":
            return
        if self._rewriting_us > self._rewritten_us and field_of(told, "aof_last_bgrewrite_status") == "ok":
            self._rewritten_us = self._rewriting_us
            await self._forgotten.rewrite(self._rewritten_us)
        else:
            self._rewritten_us = max(self._rewritten_us, await self._forgotten.rewritten())
        pause_s = max(REWRITE_S, _SHARE * float(field_of(told, "aof_last_rewrite_time_sec") or 0))
        if self._rewritten_us < self._swept_us and time.monotonic() >= self._began_s + pause_s:
            await self._begin_rewrite()

    async def _begin_rewrite(self) -> None:
        clock, _ = await self._link.pipeline("sweep", [["TIME"], ["BGREWRITEAOF"]])
        self._began_s = time.monotonic()
        self._rewriting_us = min(self._swept_us, (int(clock[0]) - SETTLED_S) * 1_000_000)

    async def _ended(self) -> None:
        with suppress(Unavailable):
            await self._lease.give()
            if self._embedded and self._rewritten_us < self._swept_us:
                # Whatever is deleted leaves the files with the service's end.
                await self._begin_rewrite()
                for _ in range(round(LAST_REWRITE_S / _POLL_S)):
                    await asyncio.sleep(_POLL_S)
                    told = (await self._link.pipeline("sweep", [["INFO", "persistence"]]))[0]
                    if field_of(told, "aof_rewrite_in_progress") == "0":
                        return

    async def _run(self) -> None:
        while True:
            self._news.clear()
            try:
                await self.round()
                self._failing = False
            except (Problem, BankError) as error:
                if not self._failing:
                    log.warning("deleted videos wait to be forgotten everywhere", reason=str(error))
                self._failing = True
            except Exception:
                log.exception("deleted videos could not be forgotten everywhere")
            with suppress(TimeoutError):
                async with asyncio.timeout(EVERY_S):
                    await self._news.wait()


def place_of(deployment: Deployment) -> str:
    """Which bank a model asks: of an embedded one its folder, until it is filled anew; of a server's its name."""
    folder: Path | None = deployment.bank.folder
    if folder is None:
        return f"server-{deployment.version[:16]}"
    marker = folder.resolve() / "bank.json"
    filled = marker.stat().st_mtime_ns if marker.exists() else 0
    text = f"{uuid.getnode()} {marker} {filled}"
    return f"{hashlib.blake2b(text.encode(), digest_size=8).hexdigest()}-{deployment.version[:16]}"
