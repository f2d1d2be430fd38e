"""Decides when the forecasts to be scored are made. Clients cannot influence this schedule.

A new video is due within seconds of the first change that this process sees. After that, the video is due once per age step
(``label.age_step``), at a time derived from a secret of this Python process. In the first step, the video is due once before its first row
and once after that row. If there are more than ``limit`` videos, the secret also decides which videos are in the schedule. Therefore one
client's videos can displace other clients' videos only in proportion to their number.
"""

from __future__ import annotations

import hashlib
import heapq
import secrets
from collections.abc import Iterator
from typing import Final

from service.quality.label import age_step, step_end_us

_OLDEST_US: Final = 10 * 365 * 86_400 * 1_000_000
"""Age in microseconds at which a video leaves the schedule."""
_SPACE: Final = 2**64
_LAST: Final = 0.9
"""Latest due time within an age step, as a fraction of the step. The rest of the step absorbs small delays."""
_MET_US: Final = 10 * 1_000_000
"""Time in microseconds within which a new video is due. Due times of many new videos are spread over this time."""


class Schedule:
    """Times at which the next forecast of each video is due, in microseconds."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._secret = secrets.token_bytes(16)
        self._share = 1.0
        self._at: dict[str, int] = {}
        self._order: list[tuple[int, str]] = []

    def __len__(self) -> int:
        return len(self._at)

    def __contains__(self, video_id: str) -> bool:
        return video_id in self._at

    def follows(self, video_id: str) -> bool:
        """Return whether a video may be in the schedule."""
        return self._share >= 1 or self._drawn(video_id, "follow") < self._share

    def plan(self, video_id: str, published_us: int, now_us: int, *, made: bool) -> None:
        """Schedule a video's next forecast.

        If ``made`` is False, the video is new and is due soon. If ``made`` is True, the forecast for the present age step has been made,
        and the video is due in the next step.
        """
        step = age_step(max(0, now_us - published_us)) + 1
        begin_us, end_us = step_end_us(step - 1), step_end_us(step)
        if begin_us >= _OLDEST_US or not self.follows(video_id):
            self.drop(video_id)
            return
        if made:
            fraction = _LAST * self._drawn(video_id, step)
            self._put(video_id, published_us + begin_us + int(fraction * (end_us - begin_us)))
        else:
            self._put(video_id, now_us + int(self._drawn(video_id, "met") * _MET_US))
        if len(self._at) > self._limit:
            self._share /= 2
            for name in [name for name in self._at if not self.follows(name)]:
                self.drop(name)

    def early(self, video_id: str, published_us: int, now_us: int) -> bool:
        """Return whether a video is in its first age step and has not reached its due time in that step."""
        return now_us < published_us + self._first_us(video_id)

    def wait(self, video_id: str, published_us: int) -> None:
        """Schedule a video at its due time in the first age step."""
        self._put(video_id, published_us + self._first_us(video_id))

    def _first_us(self, video_id: str) -> int:
        # Avoid the first minutes, because most first rows come then.
        return int((0.2 + (_LAST - 0.2) * self._drawn(video_id, 0)) * step_end_us(0))

    def later(self, video_id: str, at_us: int) -> None:
        """Schedule a video at the given time."""
        self._put(video_id, at_us)

    def drop(self, video_id: str) -> None:
        """Remove a video from the schedule."""
        self._at.pop(video_id, None)
        if self._share < 1 and len(self._at) < self._limit // 4:
            self._share *= 2

    def due(self, now_us: int, limit: int) -> Iterator[str]:
        """Yield up to ``limit`` videos that are due. A yielded video is never due again unless it is scheduled again."""
        while limit and self._order and self._order[0][0] <= now_us:
            at_us, video_id = heapq.heappop(self._order)
            if self._at.get(video_id) == at_us:
                limit -= 1
                yield video_id

    def _put(self, video_id: str, at_us: int) -> None:
        self._at[video_id] = at_us
        heapq.heappush(self._order, (at_us, video_id))
        if len(self._order) > 4 * len(self._at) + 1000:
            # Most entries of the heap are outdated. Keep only the current entries.
            self._order = [(at, name) for name, at in self._at.items()]
            heapq.heapify(self._order)

    def _drawn(self, video_id: str, what: int | str) -> float:
        """Return a number in [0, 1) that only this Python process can compute."""
        text = f"{what} {video_id}".encode("utf-8", "surrogatepass")
        return int.from_bytes(hashlib.blake2b(text, key=self._secret, digest_size=8).digest(), "big") / _SPACE
