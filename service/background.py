"""Tasks that run beside requests for as long as the service does."""

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
    """Work that is started with the application's event loop and stopped before the store's connections close."""

    @property
    def tasks(self) -> Sequence[BackgroundTask]:
        """The tasks it consists of; each is restarted when it fails."""

    def start(self) -> None:
        """Begin. Called inside a running loop."""

    async def stop(self) -> None:
        """End cleanly. Called once, also if the start of another part failed."""


def _ignore(name: str) -> None:
    """Report a failure to nobody."""


class BackgroundTask(ABC):
    """A Background of one task: ``_run`` loops until it is cancelled, ``_ended`` cleans up.

    If ``_run`` fails, for whatever reason, ``on_death`` is called with the class name, and ``_run`` is restarted after
    ``REST_S``.
    """

    on_death: Callable[[str], None] = staticmethod(_ignore)
    _task: asyncio.Task[None] | None = None
    _stopping = False

    @property
    def tasks(self) -> Sequence[BackgroundTask]:
        """Only this task."""
        return (self,)

    def start(self) -> None:
        """Begin, also again after a stop. Called inside a running loop."""
        self._stopping = False
        self._task = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End, and clean up."""
        self._stopping = True
        while self._task is not None and not self._task.done():
            # Repeated, because a library in between may take a cancellation for a failure of its connection.
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
                # A cancellation that does not come from ``stop`` came out of a library: it counts as a failure.
                if self._stopping or isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                log.error("a background task failed and is restarted", task=name, exc_info=error)
            self.on_death(name)
            await asyncio.sleep(REST_S)

    @abstractmethod
    async def _run(self) -> None: ...

    async def _ended(self) -> None:  # noqa: B027 - most have nothing to clean up
        ...
