"""The interface of the bank, which stores past videos and searches them for similar ones.

A search finds two groups of past videos: the videos most similar to a target video in content, and the videos most
similar to the target in trajectory at the target's age. The caller ranks both groups together, because only the
caller knows the weights of the two similarities.

A search returns only data that were already known at ``now_us``. The bank enforces this rule, not the caller.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

NEVER_US: Final = 2**53
"""Value of ``usable_from_us`` for a vector that is never usable. It is a time in the year 2255, and every query's time lies
before this time. Up to this value, float64 represents microseconds exactly."""

Progress = Callable[[int, int], None]
"""Callback that gets (steps done, total steps)."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Growth of one metric of a video.

    Point i becomes known at the time ``published_us + ages_us[i]``.

    Attributes:
        ages_us: (n,) int64 microseconds since publication, strictly increasing, n <= 40.
        values: (n,) int64 cumulative counts.
    """

    ages_us: NDArray[np.int64]
    values: NDArray[np.int64]

    def until(self, age_us: int) -> Curve:
        """Return the points up to the age ``age_us``. The arrays are views, not copies."""
        n = int(self.ages_us.searchsorted(age_us, side="right"))
        return self if n == len(self.ages_us) else Curve(self.ages_us[:n], self.values[:n])


NO_CURVE: Final = Curve(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))
"""The curve of a metric that was not observed. The arrays are read-only, like those of a stored curve."""
NO_CURVE.ages_us.flags.writeable = NO_CURVE.values.flags.writeable = False


@dataclass(frozen=True, slots=True, eq=False)
class BankVideo:
    """One video as it is passed to the bank.

    A vector of norm zero has no direction, so it is treated as missing. No ``usable_from_us`` may lie before
    ``published_us``.

    Attributes:
        content: (Dc,) float32 or None.
        trajectories: maps an age bucket (0 .. 254) to a pair: a vector (Dt,) float32, and the time from which this
            vector is usable.
        curve: growth of the bundle's first metric.
        usable_from_us: time from which ``content`` is usable. With NEVER_US, no search by content finds the video,
            but ``creator`` still does.
        further: growth of each of the bundle's other metrics that was observed.
    """

    video_id: str
    published_us: int
    category: str | None
    creator_id: str | None
    content: NDArray[np.float32] | None
    trajectories: Mapping[int, tuple[NDArray[np.float32], int]]
    curve: Curve
    usable_from_us: int
    further: Mapping[str, Curve] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, eq=False)
class BankQuery:
    """A search for neighbours, as of ``now_us``.

    The search finds up to ``limit`` neighbours by content, and up to ``limit`` neighbours by trajectory in
    ``age_bucket``. If ``content`` or ``trajectory`` is None or has norm zero, no neighbours are found by it.
    ``exclude`` is the id of the target video, which is never returned.
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

    ``content`` and ``trajectory`` are None if the video has no such vector, or if the vector was not usable yet at
    ``now_us``.

    Attributes:
        curve: the points up to ``now_us``, for the bundle's first metric.
        content: (Dc,) float32, the stored content vector divided by its norm. The array is read-only.
        trajectory: (Dt,) float32, the stored trajectory vector of the query's age bucket divided by its norm. The
            array is read-only.
        further: the points up to ``now_us``, for each of the bundle's other metrics that was observed.
    """

    video_id: str
    published_us: int
    category: str | None
    creator_id: str | None
    curve: Curve
    content: NDArray[np.float32] | None
    trajectory: NDArray[np.float32] | None
    further: Mapping[str, Curve] = field(default_factory=dict)

    def curve_of(self, further: str | None) -> Curve:
        """Return the curve of a further metric, or of the first metric if ``further`` is None. The curve may have no points."""
        return self.curve if further is None else self.further.get(further, NO_CURVE)


@dataclass(frozen=True, slots=True, eq=False)
class PastVideo:
    """A video of a creator. Its curves are NOT truncated. The caller must truncate them at the time of the forecast."""

    video_id: str
    published_us: int
    curve: Curve
    further: Mapping[str, Curve] = field(default_factory=dict)

    def curve_of(self, further: str | None) -> Curve:
        """Return the curve of a further metric, or of the first metric if ``further`` is None. The curve may have no points."""
        return self.curve if further is None else self.further.get(further, NO_CURVE)


class Bank(Protocol):
    """A store of past videos. Every method may raise BankError, and DataError if its input is unusable."""

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add videos. Everything already stored about a video is replaced. If an id occurs twice, the last video is stored."""

    def remove(self, video_ids: Sequence[str]) -> None:
        """Remove videos. Ids that are not stored are ignored."""

    def forget(self, tombstones: Sequence[str]) -> None:
        """Remove videos by their tombstones (see ``model.bank.tombstone``). This works even if the ids are not known any more."""

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Return the neighbours of each query, in the order of the queries.

        Each list starts with the neighbours by content, most similar (by cosine) first. The neighbours found only by
        trajectory follow, also most similar first. If two similarities differ by at most 1e-6, the videos are ordered
        by video_id.
        """

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """Return all videos of each creator, ordered by (published_us, video_id). An unknown creator has an empty list."""

    def cache_searches(self, videos: int) -> None:
        """Turn on the search cache, which makes the next search for the same target video cheap.

        For each of the ``videos`` most recent targets, the cache keeps the points near the target. The cache is off
        until this method is called.
        """

    def optimize(self, progress: Progress | None = None) -> None:
        """Build the indexes that make a large bank fast. The indexes are approximate, so a search may miss a few neighbours."""

    def counts(self) -> dict[str, int]:
        """Return the counts "videos" and "trajectories". A video has one trajectory for each age bucket with a stored vector."""

    def close(self) -> None:
        """Write pending changes and release all resources. A second call does nothing."""
