"""Work that goes on beside requests."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from typing import Final, Protocol

_PATIENCE_S: Final = 0.5


class Background(Protocol):
    """Started with the application's loop, stopped before the store's connections close."""

    def start(self) -> None:
        """Begin; a running loop is there."""

    async def stop(self) -> None:
        """End in good order; called once, also when ``start`` failed elsewhere."""


class Running(ABC):
    """A Background that is one task: ``_run`` goes on until it is cancelled, ``_ended`` tidies up."""

    _task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; a running loop is there."""
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        """End, and tidy up."""
        while self._task is not None and not self._task.done():
            # Again and again: a library in between may take a cancellation for a failure of its connection.
            self._task.cancel()
            await asyncio.wait([self._task], timeout=_PATIENCE_S)
        await self._ended()

    @abstractmethod
    async def _run(self) -> None: ...

    async def _ended(self) -> None:  # noqa: B027 - most have nothing to tidy up
        ...
