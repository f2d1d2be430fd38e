"""Work that goes on beside requests."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Final, Protocol

import structlog

log = structlog.get_logger(__name__)

_PATIENCE_S: Final = 0.5
REST_S: Final = 1.0
"""Seconds before work that died is begun again."""


class Background(Protocol):
    """Started with the application's loop, stopped before the store's connections close."""

    @property
    def running(self) -> Sequence[Running]:
        """Its tasks, each of which is begun again when it dies."""

    def start(self) -> None:
        """Begin; a running loop is there."""

    async def stop(self) -> None:
        """End in good order; called once, also when ``start`` failed elsewhere."""


def _uncounted(name: str) -> None:
    """Nobody counts."""


class Running(ABC):
    """A Background that is one task: ``_run`` goes on until it is cancelled, ``_ended`` tidies up.

    Whatever it dies of, ``died`` is told its name, and it is begun again after ``REST_S``.
    """

    died: Callable[[str], None] = staticmethod(_uncounted)
    _task: asyncio.Task[None] | None = None
    _stopping = False

    @property
    def running(self) -> Sequence[Running]:
        """Itself."""
        return (self,)

    def start(self) -> None:
        """Begin, also again after a stop; a running loop is there."""
        self._stopping = False
        self._task = asyncio.create_task(self._supervise())

    async def stop(self) -> None:
        """End, and tidy up."""
        self._stopping = True
        while self._task is not None and not self._task.done():
            # Again and again: a library in between may take a cancellation for a failure of its connection.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_PATIENCE_S)
        await self._ended()

    async def _supervise(self) -> None:
        name = type(self).__name__
        while True:
            try:
                await self._run()
                return
            except BaseException as error:
                # A cancellation that is no stop's came out of a library, and ends the work as any other fault does.
                if self._stopping or isinstance(error, KeyboardInterrupt | SystemExit):
                    raise
                log.error("work in the background died; it is begun again", task=name, exc_info=error)
            self.died(name)
            await asyncio.sleep(REST_S)

    @abstractmethod
    async def _run(self) -> None: ...

    async def _ended(self) -> None:  # noqa: B027 - most have nothing to tidy up
        ...
