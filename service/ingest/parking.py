"""Whose rows wait for a registration: a share for each client, so that ids made up by one do not use up everybody's room."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from model.lru_cache import LRUCache
from service.store.change_publisher import Change

_CLIENTS: Final = 10_000


class Parking:
    """Videos that rows of a client are parked for, as far as this replica has parked them; at most ``most`` of one client.

    A video counts until it is registered or forgotten, by any replica, and no longer than ``ttl_s`` after its newest row.
    """

    def __init__(self, most: int, ttl_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._ttl_s, self._clock = most, ttl_s, clock
        self._of: LRUCache[bytes, OrderedDict[str, float]] = LRUCache(_CLIENTS)

    def allows(self, client: bytes) -> bool:
        """Whether rows of this client may be parked."""
        videos = self._of.peek(client)
        if not videos:
            return self._most > 0
        oldest_s = self._clock() - self._ttl_s
        while videos and next(iter(videos.values())) < oldest_s:
            videos.popitem(last=False)
        return len(videos) < self._most

    def parked(self, client: bytes, videos: Iterable[str]) -> None:
        """Note that rows of this client were parked for these."""
        held = self._of.peek(client)
        if held is None:
            held = OrderedDict()
        self._of.put(client, held)
        now_s = self._clock()
        for video_id in videos:
            held[video_id] = now_s
            held.move_to_end(video_id)

    def changed(self, changes: Sequence[Change]) -> None:
        """These videos are registered, or forgotten: nothing is parked for them any more."""
        for held in self._of.values():
            if held:
                for video_id, _ in changes:
                    held.pop(video_id, None)

    def missed(self) -> None:
        """Changes were missed; what should not count any more does so until ``ttl_s`` is over."""
