"""The common base of the embedded bank and the server's bank: search, and caches of videos, creators and searches."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Final, Generic, TypeVar

from model.bank.interface import BankQuery, Candidate, PastVideo
from model.bank.search import Lookup, search
from model.bank.search_cache import SearchCache
from model.bank.stored_video import StoredVideo
from model.lru_cache import LRUCache

K = TypeVar("K", bound=Hashable)
T = TypeVar("T")

CACHED_VIDEOS: Final = 32_768
"""Number of decoded videos that are kept in memory. Each video takes 1 to 4 KB."""
CACHED_CREATORS: Final = 4_096
"""Number of creators whose list of videos is kept in memory."""


class CachedEngine(ABC, Generic[K]):
    """An engine behind caches. A bank derives from this class and implements the calls of its engine.

    A key of type K identifies a video inside the engine.

    Args:
        dims: dimensions of the content vectors and of the trajectory vectors.
        ttl_s: number of seconds for which cached results are used. With None, cached results are used until this
            process changes a video. This is correct only if no other process writes to the bank.
    """

    def __init__(self, dims: tuple[int, int], ttl_s: float | None) -> None:
        self._dims = dims
        self._ttl_s = ttl_s
        self._videos: LRUCache[K, StoredVideo] = LRUCache(CACHED_VIDEOS, ttl_s)
        self._creators: LRUCache[str, list[PastVideo]] = LRUCache(CACHED_CREATORS, ttl_s)
        self._searches: SearchCache[K] | None = None

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Return the neighbours of each query; see Bank. One call with many queries is faster than many calls."""
        return self._call("search", lambda: search(queries, self._dims, self._key, self._nearest, self._rows))

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """Return all videos of each creator; see Bank."""
        known = {creator_id: self._creators.get(creator_id) for creator_id in creator_ids}
        found: dict[str, list[PastVideo]] = {creator_id: [] for creator_id, past in known.items() if past is None}
        if found:
            self._call("creator", lambda: self._read_creators(found))
        return {creator_id: found[creator_id] if past is None else past for creator_id, past in known.items()}

    def cache_searches(self, videos: int) -> None:
        """Turn on the search cache. It holds results for the ``videos`` most recent targets of searches; see Bank."""
        self._searches = SearchCache(videos, self._ttl_s)

    def _invalidate(self, changed: Sequence[K]) -> None:
        """Drop the changed videos from the caches, and every cached result that may depend on them."""
        for key in changed:
            self._videos.drop(key)
        self._creators.clear()
        if self._searches is not None:
            self._searches.clear()

    def _read_creators(self, found: dict[str, list[PastVideo]]) -> None:
        """Fill the lists in ``found`` with each creator's videos, oldest first. Cache these lists."""
        rows = self._of_creators(list(found))
        for row in sorted(rows, key=lambda row: (row.published_us, row.video_id)):
            if row.creator_id is not None:
                found[row.creator_id].append(row.past())
        for creator_id, past in found.items():
            self._creators.put(creator_id, past)

    def _nearest(self, lookups: Sequence[Lookup]) -> list[list[tuple[K, float]]]:
        if self._searches is None:
            return self._nearest_in_engine(lookups)
        return self._searches.nearest(lookups, self._all_usable, self._nearest_in_engine, self._rows)

    def _rows(self, wanted: Sequence[tuple[K, int]]) -> dict[K, StoredVideo]:
        """Return the videos of the wanted (key, age bucket) pairs, by key. Each video has its trajectories in the wanted buckets.

        Videos that no longer exist are left out.
        """
        rows: dict[K, StoredVideo] = {}
        missing: list[K] = []
        for key in dict.fromkeys(key for key, _ in wanted):
            row = self._videos.get(key)
            if row is None:
                missing.append(key)
            else:
                rows[key] = row
        if missing:
            for key, row in self._read(missing).items():
                self._videos.put(key, row)
                rows[key] = row
        self._add_trajectories(rows, wanted)
        return rows

    @abstractmethod
    def _call(self, what: str, function: Callable[[], T]) -> T:
        """Call a function that uses the engine, under the bank's lock or deadline. Every failure is raised as a BankError."""

    @abstractmethod
    def _key(self, video_id: str) -> K:
        """Return the engine's key of a video."""

    @abstractmethod
    def _nearest_in_engine(self, lookups: Sequence[Lookup]) -> list[list[tuple[K, float]]]:
        """Ask the engine for the points nearest to each lookup. Return (key, cosine) of each point, best first."""

    @abstractmethod
    def _all_usable(self, lookup: Lookup) -> bool:
        """Return whether every point of the lookup's space is usable at the lookup's time. If so, a later search finds the same points."""

    @abstractmethod
    def _read(self, keys: Sequence[K]) -> dict[K, StoredVideo]:
        """Read the videos with these keys from the engine. Keys without a video are left out."""

    @abstractmethod
    def _of_creators(self, creator_ids: Sequence[str]) -> Iterable[StoredVideo]:
        """Return all videos of these creators, in any order."""

    def _add_trajectories(self, rows: dict[K, StoredVideo], wanted: Sequence[tuple[K, int]]) -> None:
        """Add the trajectories that ``_read`` did not return with the videos.

        Only a bank that stores trajectories separately from videos overrides this method.
        """
