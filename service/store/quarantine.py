"""Quarantine of records that cannot be read. Each damaged record is logged and counted once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import structlog

from model.lru_cache import LRUCache
from service.metrics import Metrics
from service.problems import DamagedRecord

log = structlog.get_logger(__name__)

_REMEMBERED: Final = 10_000


@dataclass(frozen=True, slots=True)
class Damaged:
    """A video whose record cannot be read. ``why`` gives the reason."""

    video_id: str
    why: str

    def problem(self) -> DamagedRecord:
        """Return the error for a client that requests the video."""
        return DamagedRecord(self.video_id, self.why)


class Quarantine:
    """The last ``_REMEMBERED`` damaged records that this process has found."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: LRUCache[str, None] = LRUCache(_REMEMBERED)

    def note(self, damaged: Damaged) -> Damaged:
        """Log and count a damaged record, if it is not known yet. Return ``damaged``."""
        if damaged.video_id not in self._known:
            self._metrics.damaged_records.inc()
            log.error("a stored record cannot be read", video_id=damaged.video_id, why=damaged.why)
            self._known.put(damaged.video_id, None)
        return damaged

    def forget(self, video_id: str) -> None:
        """Remove a video, because it was deleted or registered again."""
        self._known.drop(video_id)
