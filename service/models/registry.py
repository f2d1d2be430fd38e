"""Models side by side: which there are, which one answers, and how another takes over without a failed request.

load and verify -> warm up -> store the choice -> switch -> drain the model before -> keep or close it
     |               |             |
     |               |             +-- Unavailable 503  the event store does not answer: nothing changes
     |               +---------------- Conflict    409  it cannot forecast: nothing changes
     +-------------------------------- Conflict    409  damaged, its bank is in use, or it does not fit: nothing changes
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final, TypeVar

import structlog
from prometheus_client.core import GaugeMetricFamily, Metric

from model.content.text import SentenceEncoder
from model.engagement.bins import HOUR_US
from model.errors import BundleError, M3TRError
from service.background import Running
from service.deployment.deployment import Deployment
from service.forecasts.engine import Engine
from service.metrics import Metrics
from service.models.active_version import ActiveVersion
from service.models.shadow import Shadow
from service.models.versions import Version, Versions, choose, misfit
from service.models.warmup import warm_up
from service.problems import Conflict, Problem, Unavailable
from service.settings import ModelSettings

log = structlog.get_logger(__name__)

T = TypeVar("T")

Load = Callable[[Path, SentenceEncoder], Deployment]
"""Loads a bundle from its folder, with the encoder of a model in memory. Blocks: for a thread."""

_COUNTED: Final = ("hits", "misses", "evictions")


class ModelRegistry:
    """Holds every model in memory: the engine's active one, earlier ones that are kept, and the shadow's.

    ``prepare`` is awaited for each model before its first forecast that counts.
    """

    def __init__(
        self,
        engine: Engine,
        shadow: Shadow,
        choice: ActiveVersion,
        load: Load,
        settings: ModelSettings,
        metrics: Metrics,
    ) -> None:
        self.engine, self.shadow = engine, shadow
        engine.deployments = self.deployments
        self.prepare: list[Callable[[Deployment], Awaitable[None]]] = []
        self._choice, self._load_bundle, self._settings, self._metrics = choice, load, settings, metrics
        choice.follow = self.follow
        self._versions = Versions(settings.bundle, settings.bundles)
        self._promised = engine.active.forecaster.manifest
        self._kept: OrderedDict[str, Deployment] = OrderedDict()
        self._gone: Counter[str] = Counter()
        self._changing = asyncio.Lock()
        self._changes: set[asyncio.Task[Any]] = set()
        self._stopping = False
        self._loader = ThreadPoolExecutor(1, thread_name_prefix="m3tr-loader")

    async def rows(self) -> list[dict[str, Any]]:
        """Every version as GET /models shows it, the served bundle first."""
        states = self._states()
        return [self._row(version, states) for version in await self._all()]

    async def activate(self, name: str) -> dict[str, Any]:
        """Let a version answer from now on, here and in every replica; the answer tells what was done."""
        return await self._change(self._activate(name, self._choice.write))

    async def begin_shadow(self, name: str) -> dict[str, Any]:
        """Let a version forecast along, here."""
        return await self._change(self._begin_shadow(name))

    async def end_shadow(self) -> None:
        """Let no version forecast along any more."""
        await self._change(self._end_shadow())

    async def follow(self) -> None:
        """Let the stored choice answer; one that cannot is told, and the model that answers goes on.

        Raises Unavailable when the event store does not answer.
        """
        await self._change(self._follow())

    @property
    def running(self) -> Sequence[Running]:
        """What follows the stored choice, and the shadow."""
        return (self._choice, self.shadow)

    def start(self) -> None:
        """Begin to follow the stored choice."""
        self._choice.start()

    async def stop(self) -> None:
        """Follow no more; a change under way is finished, or given up where it has just begun."""
        self._stopping = True
        await self._choice.stop()
        await asyncio.gather(*self._changes, return_exceptions=True)
        await self._end_shadow()

    async def close(self) -> None:
        """Release every model; nothing asks them any more."""
        for deployment in self.deployments():
            await self._close(deployment)
        self._loader.shutdown()
        self.shadow.close()

    def deployments(self) -> list[Deployment]:
        """Every model in memory."""
        shadow = self.shadow.deployment
        return [self.engine.active, *self._kept.values(), *([shadow] if shadow is not None else [])]

    def states(self, name: str) -> int:
        """What all pools of states, also those that are gone, have counted under ``name``."""
        return self._gone[name] + sum(int(getattr(deployment.pool, name)) for deployment in self.deployments())

    def readings(self) -> Sequence[Metric]:
        """Which models are in memory, and as what."""
        info = GaugeMetricFamily("m3tr_model_info", "Models in memory", labels=["model_version", "state"])
        for version, state in self._states().items():
            info.add_metric([version, state], 1)
        return [info]

    async def _change(self, work: Coroutine[Any, Any, T]) -> T:
        """One change at a time, and to its end, also when whoever asked for it has gone."""

        async def alone() -> T:
            async with self._changing:
                return await work

        task = asyncio.create_task(alone())
        self._changes.add(task)
        task.add_done_callback(self._changed)
        return await asyncio.shield(task)

    def _changed(self, task: asyncio.Task[Any]) -> None:
        self._changes.discard(task)
        if not task.cancelled():
            task.exception()

    async def _activate(self, name: str, remember: Callable[[str], Awaitable[None]]) -> dict[str, Any]:
        started, before = time.perf_counter(), self.engine.active
        version = choose(name, await self._all())
        told = {"model_version": version.hash, "previous_version": before.version}
        if version.hash == before.version:
            await remember(before.version)
            return {**told, "changed": False, "seconds": 0.0, "warmed": 0}
        deployment = await self._ready(version)
        try:
            warmed = await self._warm(deployment)
            await remember(deployment.version)
        except BaseException:
            await self._leave(deployment)
            raise
        if deployment is self.shadow.deployment:
            await self.shadow.end()
        self._kept.pop(deployment.version, None)
        self.engine.switch(deployment)
        seconds = time.perf_counter() - started
        self._metrics.model_switches.inc()
        self._metrics.model_switch_seconds.observe(seconds)
        log.info("another model answers", model_version=deployment.version, before=before.version, warmed=warmed)
        await self.engine.drained(before)
        await self._keep(before)
        return {**told, "changed": True, "seconds": round(seconds, 3), "warmed": warmed}

    async def _begin_shadow(self, name: str) -> dict[str, Any]:
        version = choose(name, await self._all())
        if version.hash == self.engine.active.version:
            raise Conflict("this model answers; its shadow must be another one", field="version", value=name)
        deployment = await self._ready(version)
        if deployment is not self.shadow.deployment:
            try:
                await self._prepare(deployment)
            except BaseException:
                await self._leave(deployment)
                raise
            # Out of what is kept first, or ending the shadow before might close it.
            self._kept.pop(deployment.version, None)
            await self._end_shadow()
            self.shadow.begin(deployment)
        return {"model_version": deployment.version, "share": self._settings.shadow_share}

    async def _end_shadow(self) -> None:
        if deployment := await self.shadow.end():
            await self._keep(deployment)

    async def _follow(self) -> None:
        chosen = await self._choice.read()
        if chosen is None or chosen == self.engine.active.version:
            return
        try:
            await self._activate(chosen, _stored)
        except Unavailable:
            raise
        except Problem as problem:
            self._choice.refuse(chosen)
            self._metrics.model_choice_failures.inc()
            log.error("the stored choice of a model cannot be followed", chosen=chosen, reason=problem.detail)

    async def _ready(self, version: Version) -> Deployment:
        """The model of a version that fits, loaded where it is not yet."""
        for held in self.deployments():
            if held.version == version.hash:
                return held
        if version.manifest is not None and (reason := misfit(version.manifest, self._promised)):
            raise Conflict(reason, field="version", value=version.hash)
        try:
            return await self._load(version)
        except Exception as error:
            self._metrics.model_load_failures.inc()
            unforeseen = not isinstance(error, M3TRError | OSError)
            log.warning("a model cannot be loaded", model_version=version.hash, error=str(error), exc_info=unforeseen)
            reason = version.without_paths(str(error))
            raise Conflict(f"the model cannot be loaded: {reason}", field="version", value=version.hash) from error

    async def _load(self, version: Version) -> Deployment:
        folder: Path | None = version.folder
        if version.broken is not None or folder is None:
            raise BundleError(version.broken or "it is not on disk any more")
        encoder = self.engine.active.forecaster.encoder
        deployment = await self._in_loader(lambda: self._load_bundle(folder, encoder))
        if deployment.version != version.hash:
            await self._close(deployment)
            raise BundleError(f"{folder}: the bundle changed while it was loaded")
        return deployment

    async def _warm(self, deployment: Deployment) -> int:
        """Make it ready to take over; how many videos it has forecast."""
        horizons_us = (min(HOUR_US, deployment.forecaster.manifest.max_horizon_us),)
        wanted = self.engine.newest(min(self._settings.warm_videos, deployment.pool.capacity), horizons_us)
        # The newest last, so that they stay longest.
        await warm_up(deployment, wanted[::-1], self._loader, lambda: self._stopping)
        await self._prepare(deployment)
        return len(wanted)

    async def _prepare(self, deployment: Deployment) -> None:
        for prepare in self.prepare:
            await prepare(deployment)

    async def _leave(self, deployment: Deployment) -> None:
        """Close a model that was loaded for a change that failed; one that was there before stays."""
        if all(deployment is not held for held in self.deployments()):
            await self._close(deployment)

    async def _keep(self, deployment: Deployment) -> None:
        self._kept[deployment.version] = deployment
        while len(self._kept) > self._settings.models_kept:
            await self._close(self._kept.popitem(last=False)[1])

    async def _close(self, deployment: Deployment) -> None:
        self._gone.update({name: getattr(deployment.pool, name) for name in _COUNTED})
        try:
            await self._in_loader(deployment.close)
        except M3TRError as error:
            log.warning("a model cannot be closed", model_version=deployment.version, error=str(error))

    async def _in_loader(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._loader, work)

    async def _all(self) -> list[Version]:
        try:
            found = await self._in_loader(self._versions.look)
        except OSError as error:
            log.warning("the folder of models cannot be read", error=str(error))
            raise Unavailable(f"the folder of models cannot be read: {error.strerror}", part="models") from error
        known = {version.hash for version in found}
        held = [deployment.forecaster.manifest for deployment in self.deployments()]
        return [*(Version(it.version, None, it) for it in held if it.version not in known), *found]

    def _states(self) -> dict[str, str]:
        states = dict.fromkeys(self._kept, "loaded")
        if self.shadow.deployment is not None:
            states[self.shadow.deployment.version] = "shadow"
        return states | {self.engine.active.version: "active"}

    def _row(self, version: Version, states: dict[str, str]) -> dict[str, Any]:
        if version.manifest is None:
            return version.row("broken", version.broken)
        return version.row(states.get(version.manifest.version, "available"), misfit(version.manifest, self._promised))


async def _stored(version: str) -> None:
    """The choice is where it came from."""
