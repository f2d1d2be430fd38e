"""Records that cannot be read: each told once, and counted once."""

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
    """A video whose record cannot be read, and ``why``."""

    video_id: str
    why: str

    def problem(self) -> DamagedRecord:
        """What who asks for it is told."""
        return DamagedRecord(self.video_id, self.why)


class Quarantine:
    """The damaged records that this process has met, the last ``_REMEMBERED`` of them."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._known: LRUCache[str, None] = LRUCache(_REMEMBERED)

    def note(self, damaged: Damaged) -> Damaged:
        """Tell and count a record that was not known to be damaged; ``damaged`` itself."""
        if damaged.video_id not in self._known:
            self._metrics.damaged_records.inc()
            log.error("a stored record cannot be read", video_id=damaged.video_id, why=damaged.why)
            self._known.put(damaged.video_id, None)
        return damaged

    def forget(self, video_id: str) -> None:
        """It was deleted or registered anew."""
        self._known.drop(video_id)
