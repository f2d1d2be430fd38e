"""The newest known snapshot of each video: read again only when it changed, and still there when the store fails."""

from __future__ import annotations

from collections import OrderedDict

from service.problems import Unavailable
from service.snapshot import Snapshot
from service.store import Store


class Histories:
    """A read-through cache of ``capacity`` snapshots, the least recently asked for leaving first."""

    def __init__(self, store: Store, capacity: int) -> None:
        self._store = store
        self._capacity = capacity
        self._known: OrderedDict[str, Snapshot] = OrderedDict()

    async def get(self, video_id: str) -> tuple[Snapshot | None, bool]:
        """The video (None: not registered), and whether it is stale because the store does not answer.

        Raises Unavailable when the store does not answer and the video was never seen here.
        """
        known = self._known.get(video_id)
        try:
            snapshot = await self._store.read(video_id, known)
        except Unavailable:
            if known is None:
                raise
            return known, True
        if snapshot is None:
            self.forget(video_id)
        else:
            self._known[video_id] = snapshot
            self._known.move_to_end(video_id)
            if len(self._known) > self._capacity:
                self._known.popitem(last=False)
        return snapshot, False

    def forget(self, video_id: str) -> None:
        """Drop a video that was deleted."""
        self._known.pop(video_id, None)
