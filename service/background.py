"""Tasks that run beside requests for as long as the service runs."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

log = structlog.get_logger(__name__)

_CANCEL_AGAIN_S: Final = 0.5
REST_S: Final = 1.0
"""Seconds before a failed task is restarted."""


class Background(Protocol):
    """Work that starts with the application's event loop, and stops before the store's connections close."""

    @property
    def tasks(self) -> Sequence[BackgroundTask]:
        """Tasks of this work. Each task is restarted when it fails."""

    def start(self) -> None:
        """Start. Call this inside a running event loop."""

    async def stop(self) -> None:
        """Stop cleanly. The application calls ``stop`` once, even if other background work failed to start."""


def _ignore(name: str) -> None:
    """Do nothing when a task fails."""


class BackgroundTask(ABC):
    """Background work with one task. ``_run`` loops until it is cancelled, and ``_ended`` cleans up.

    If ``_run`` fails for any reason, ``on_death`` is called with the class name. ``_run`` is then restarted after ``REST_S`` seconds.
    """

    on_death: Callable[[str], None] = staticmethod(_ignore)
    _task: asyncio.Task[None] | None = None
    _stopping = False

    @property
    def tasks(self) -> Sequence[BackgroundTask]:
        """A sequence with this task as its only item."""
        return (self,)

    def start(self) -> None:
        """Start, or restart after ``stop``. Call this inside a running event loop."""
        self._stopping = False
        self._task = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """Stop, and clean up."""
        self._stopping = True
        while self._task is not None and not self._task.done():
            # Repeat the cancellation, because a library may mistake it for a failure of the library's connection and continue.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_CANCEL_AGAIN_S)
        await self._ended()

    async def _supervise(self) -> None:
        name = type(self).__name__
        while True:
            try:
                await self._run()
                return
            except BaseException as error:
                # A cancellation that does not come from ``stop`` comes from a library and counts as a failure.
                if self._stopping or isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                log.error("a background task failed and is restarted", task=name, exc_info=error)
            self.on_death(name)
            await asyncio.sleep(REST_S)

    @abstractmethod
    async def _run(self) -> None: ...

    async def _ended(self) -> None:  # noqa: B027 - most tasks have nothing to clean up
        ...
