"""The bank's interface: past videos, and the question asked of them.

A bank answers one question: which past videos, as they were known at ``now``, resemble this one in content, and which
in trajectory at the same age? Ranking the union is the caller's: it owns the weight between both similarities.

Look-ahead is excluded here, not by the caller: nothing that became known after ``now_us`` leaves a bank's ``search``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

NEVER_US: Final = 2**53
"""A ``usable_from_us`` that never comes; every time of a query lies before it (2255), so that float64 is exact."""

Progress = Callable[[int, int], None]
"""Called with (steps done, steps in all)."""


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """Growth of one metric of a video.

    ``ages_us`` (n,) int64 microseconds since publication, strictly increasing, n <= 40; ``values`` (n,) int64
    cumulative counts. Point i is known from ``published_us + ages_us[i]`` on.
    """

    ages_us: NDArray[np.int64]
    values: NDArray[np.int64]

    def until(self, age_us: int) -> Curve:
        """The points of age at most ``age_us`` (views, not copies)."""
        n = int(self.ages_us.searchsorted(age_us, side="right"))
        return self if n == len(self.ages_us) else Curve(self.ages_us[:n], self.values[:n])


@dataclass(frozen=True, slots=True, eq=False)
class BankVideo:
    """One video as it enters the bank.

    ``content`` (Dc,) float32 or None. ``trajectories`` maps an age bucket (0 .. 254) to (vector (Dt,) float32,
    ``usable_from_us``). The video's own ``usable_from_us`` guards its content. NEVER_US makes a video known to its
    creator only. A vector of norm zero has no direction and counts as missing. No ``usable_from_us`` may lie before
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
    """Asks for up to ``limit`` neighbours by content and as many by trajectory in ``age_bucket``, as of ``now_us``.

    A vector that is None, or of norm zero, asks nothing. ``exclude`` is the target's own id and never comes back.
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

    ``curve`` has no point later than ``now_us``. ``content`` (Dc,) and ``trajectory`` (Dt,), the latter of the query's
    age bucket, are float32, read-only and of unit length (what was stored, divided by its norm); each is None where the
    video has none or where it was not usable yet at ``now_us``.
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
    """A store of past videos; every method may raise BankError, and DataError for input that cannot be used."""

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add videos, or replace all that is stored of them; of one id given twice the last stands."""

    def remove(self, video_ids: Sequence[str]) -> None:
        """Forget videos; those that are not there are no error."""

    def forget(self, tombstones: Sequence[str]) -> None:
        """``remove`` of videos of which only the ``tombstone`` is known any more."""

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Neighbours of each query, in its order.

        Each list holds the neighbours by content from the most similar (cosine) on, then those found by trajectory
        only, likewise. Equal similarities (to within 1e-6) are ordered by video_id.
        """

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """All videos of each creator asked for, by (published_us, video_id); unknown creators have an empty list."""

    def remember(self, videos: int) -> None:
        """Keep what is near each of the newest ``videos`` that ask, so that asking again costs little; off until called."""

    def optimize(self, progress: Progress | None = None) -> None:
        """Build what makes a large bank fast; answers stay the same to within the index's recall."""

    def counts(self) -> dict[str, int]:
        """Number of "videos" and of "trajectories" (pairs of video and age bucket)."""

    def close(self) -> None:
        """Write what is pending and release everything; a second call does nothing."""
