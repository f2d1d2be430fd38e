"""Limits how many videos each client may have parked rows for. A client that invents video ids cannot use up ``park_videos``."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from model.lru_cache import LRUCache
from service.store.change_publisher import Change

_CLIENTS: Final = 10_000


class Parking:
    """Remembers, for each client, the videos for which this replica has parked rows. One client may have up to ``limit`` videos.

    A video counts until a replica registers or deletes it, but at most for ``ttl_s`` after its newest parked row.
    """

    def __init__(self, limit: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit, self._ttl_s, self._clock = limit, ttl_s, clock
        self._videos: LRUCache[bytes, OrderedDict[str, float]] = LRUCache(_CLIENTS)
        """For each client, its videos and the time at which a row was last parked for each video."""

    def allows(self, client: bytes) -> bool:
        """Return whether rows of this client may be parked."""
        videos = self._videos.peek(client)
        if not videos:
            return self._limit > 0
        oldest_s = self._clock() - self._ttl_s
        while videos and next(iter(videos.values())) < oldest_s:
            videos.popitem(last=False)
        return len(videos) < self._limit

    def parked(self, client: bytes, video_ids: Iterable[str]) -> None:
        """Record that rows of this client were parked for these videos."""
        videos = self._videos.peek(client)
        if videos is None:
            videos = OrderedDict()
        self._videos.put(client, videos)
        now_s = self._clock()
        for video_id in video_ids:
            videos[video_id] = now_s
            videos.move_to_end(video_id)

    def changed(self, changes: Sequence[Change]) -> None:
        """Stop counting the changed videos. A changed video is registered or deleted, so it has no parked rows."""
        for videos in self._videos.values():
            if videos:
                for video_id, _ in changes:
                    videos.pop(video_id, None)

    def missed(self) -> None:
        """Do nothing. If the change of a video was missed, the video counts until ``ttl_s`` has passed."""
