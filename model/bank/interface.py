"""The bank's interface: a store of past videos that is searched for similar ones.

A bank answers one question: which past videos, as they were known at ``now``, resemble this one in content, and which ones in
trajectory at the same age? The caller ranks the union, because it has the weight between the two similarities.

The bank, not the caller, prevents look-ahead: ``search`` is point-in-time and returns nothing that became known after ``now_us``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

NEVER_US: Final = 2**53
"""A ``usable_from_us`` that never comes. Every query's time lies before it (the year 2255), where float64 is exact."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in total)."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Growth of one metric of a video.

    ``ages_us`` (n,) int64 microseconds since publication, strictly increasing, n <= 40; ``values`` (n,) int64
    cumulative counts. Point i is known from the time ``published_us + ages_us[i]`` on.
    """

    ages_us: NDArray[np.int64]
    values: NDArray[np.int64]

    def until(self, age_us: int) -> Curve:
        """The points up to the age ``age_us`` (views, not copies)."""
        n = int(self.ages_us.searchsorted(age_us, side="right"))
        return self if n == len(self.ages_us) else Curve(self.ages_us[:n], self.values[:n])


@dataclass(frozen=True, slots=True, eq=False)
class BankVideo:
    """One video as it enters the bank.

    ``content`` (Dc,) float32 or None. ``trajectories`` maps an age bucket (0 .. 254) to (vector (Dt,) float32,
    ``usable_from_us``). The video's own ``usable_from_us`` applies to its content. With NEVER_US no search finds the video, only
    ``creator`` does. A vector of norm zero has no direction and counts as missing. No ``usable_from_us`` may lie before
    ``published_us``.
    """

    video_id: str
    published_us: int
    category: str | None
    creator_id: str | None
    content: NDArray[np.float32] | None
    trajectories: Mapping[int, tuple[NDArray[np.float32], int]]
    curve: Curve
    usable_from_us: int


@dataclass(frozen=True, slots=True, eq=False)
class BankQuery:
    """Searches for up to ``limit`` neighbours by content and as many by trajectory in ``age_bucket``, as of ``now_us``.

    A vector that is None, or has norm zero, is not searched for. ``exclude`` is the target's own id, which is never returned.
    """

    content: NDArray[np.float32] | None
    trajectory: NDArray[np.float32] | None
    age_bucket: int
    now_us: int
    exclude: str
    limit: int


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A past video as it was known at the query's ``now_us``.

    ``curve`` has no point later than ``now_us``. ``content`` (Dc,) and ``trajectory`` (Dt,) are float32, read-only and of unit length
    (the stored vector divided by its norm); ``trajectory`` is that of the query's age bucket. Each is None if the video has none or
    if it was not usable yet at ``now_us``.
    """

    video_id: str
    published_us: int
    category: str | None
    creator_id: str | None
    curve: Curve
    content: NDArray[np.float32] | None
    trajectory: NDArray[np.float32] | None


@dataclass(frozen=True, slots=True, eq=False)
class PastVideo:
    """A video of a creator. ``curve`` is NOT truncated: the caller cuts it at its own ``now``."""

    video_id: str
    published_us: int
    curve: Curve


class Bank(Protocol):
    """A store of past videos. Every method may raise BankError, or DataError for unusable input."""

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add videos, or replace everything stored of them. If an id occurs twice, the last one counts."""

    def remove(self, video_ids: Sequence[str]) -> None:
        """Remove videos; ids that are not stored are no error."""

    def forget(self, tombstones: Sequence[str]) -> None:
        """Remove videos of which only the ``tombstone`` is still known."""

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Neighbours of each query, in its order.

        Each list holds the neighbours by content, the most similar (cosine) first, then those found only by trajectory, also most
        similar first. Similarities that are equal to within 1e-6 are ordered by video_id.
        """

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """All videos of each creator, ordered by (published_us, video_id); an unknown creator has an empty list."""

    def cache_searches(self, videos: int) -> None:
        """Cache the points near the ``videos`` that searched last, so that their next search is cheap. Off until called."""

    def optimize(self, progress: Progress | None = None) -> None:
        """Build the indexes that make a large bank fast. Answers stay the same to within the index's recall."""

    def counts(self) -> dict[str, int]:
        """Number of "videos" and of "trajectories" (pairs of video and age bucket)."""

    def close(self) -> None:
        """Write pending changes and release everything; a second call does nothing."""
