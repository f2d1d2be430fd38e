"""Each client's share of the parked rows, so that a client that invents video ids does not use up everybody's limit."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from model.lru_cache import LRUCache
from service.store.change_publisher import Change

_CLIENTS: Final = 10_000


class Parking:
    """The videos for which this replica has parked rows of a client; up to ``limit`` of one client.

    A video counts until any replica registers or deletes it, and not longer than ``ttl_s`` after its newest row.
    """

    def __init__(self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._ttl_s, self._clock = limit, ttl_s, clock
        self._videos: LRUCache[bytes, OrderedDict[str, float]] = LRUCache(_CLIENTS)
        """By client: each video, and when a row was parked for it last."""

    def allows(self, client: bytes) -> bool:
        """Whether rows of this client may be parked."""
        videos = self._videos.peek(client)
        if not videos:
            return self._limit > 0
        oldest_s = self._clock() - self._ttl_s
        while videos and next(iter(videos.values())) < oldest_s:
            videos.popitem(last=False)
        return len(videos) < self._limit

    def parked(self, client: bytes, video_ids: Iterable[str]) -> None:
        """Note that rows of this client were parked for these videos."""
        videos = self._videos.peek(client)
        if videos is None:
            videos = OrderedDict()
        self._videos.put(client, videos)
        now_s = self._clock()
        for video_id in video_ids:
            videos[video_id] = now_s
            videos.move_to_end(video_id)

    def changed(self, changes: Sequence[Change]) -> None:
        """Stop counting these videos: they are registered or deleted, so nothing is parked for them."""
        for videos in self._videos.values():
            if videos:
                for video_id, _ in changes:
                    videos.pop(video_id, None)

    def missed(self) -> None:
        """Do nothing: a video whose change was missed counts until ``ttl_s`` has passed."""
