"""A cache of search results. A cached result is used only if it is provably still exact.

A live video is forecast often. Between two forecasts, the video's trajectory vector moves only a little. The first
search, with the vector u, fetches WIDER times as many points as needed. Let c be the cosine of the last fetched
point. When the vector has moved to v, every other point has a cosine of at most c + |v - u| (Cauchy-Schwarz, because
all vectors have unit length). So if the k-th best fetched point reaches this bound, the best k fetched points are the
best k of all points, and the engine is not called.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.bank.search import CONTENT, TIE, Lookup
from model.bank.stored_video import StoredVideo
from model.lru_cache import LRUCache

K = TypeVar("K", bound=Hashable)
WIDER: Final = 3
"""Number of points that are fetched for each point that is needed."""

Nearest = Callable[[Sequence[Lookup]], list[list[tuple[K, float]]]]
Rows = Callable[[Sequence[tuple[K, int]]], Mapping[K, StoredVideo]]


@dataclass(slots=True, eq=False)
class _Answer(Generic[K]):
    """The engine's result for ``vector``.

    ``hits`` holds the points that were found, best first. No other point has a cosine above ``floor``.
    """

    vector: NDArray[np.float32]
    hits: list[tuple[K, float]]
    floor: float
    vectors: NDArray[np.float32] | None = None


class SearchCache(Generic[K]):
    """A cache of the points near each of ``capacity`` videos.

    Set ``ttl_s`` if other processes write to the bank. Results are then used for that number of seconds.
    """

    def __init__(self, capacity: int, ttl_s: float | None = None) -> None:
        self._answers: LRUCache[tuple[str, int], _Answer[K]] = LRUCache(2 * capacity, ttl_s)
        self.hits = self.misses = 0

    def clear(self) -> None:
        """Drop all results, because new points may be nearer than the cached ones."""
        self._answers.clear()

    def nearest(
        self, lookups: Sequence[Lookup], all_usable: Callable[[Lookup], bool], engine: Nearest[K], rows: Rows[K]
    ) -> list[list[tuple[K, float]]]:
        """Return the same result as ``engine``. The engine is called only if the result does not follow from earlier results.

        ``all_usable`` says whether every point of the lookup's space is usable at the lookup's ``now_us``. If so, the
        result stays the same at any later time, and the result is cached. Otherwise the result is not cached.
        """
        cacheable = [all_usable(lookup) for lookup in lookups]
        known = [
            self._known(lookup, rows) if allowed else None for lookup, allowed in zip(lookups, cacheable, strict=True)
        ]
        missing = [i for i, hits in enumerate(known) if hits is None]
        self.hits += len(lookups) - len(missing)
        self.misses += len(missing)
        wider = [replace(lookups[i], limit=WIDER * lookups[i].limit) if cacheable[i] else lookups[i] for i in missing]
        for i, lookup, found in zip(missing, wider, engine(wider) if wider else [], strict=True):
            if cacheable[i]:
                floor = found[-1][1] if len(found) == lookup.limit else -np.inf
                self._answers.put((lookup.owner, lookup.space), _Answer(lookup.vector, found, floor))
            known[i] = found[: lookups[i].limit]
        return [hits if hits is not None else [] for hits in known]

    def _known(self, lookup: Lookup, rows: Rows[K]) -> list[tuple[K, float]] | None:
        answer = self._answers.get((lookup.owner, lookup.space))
        if answer is None or (len(answer.hits) < lookup.limit and answer.floor > -np.inf):
            return None
        if not answer.hits or np.array_equal(answer.vector, lookup.vector):
            return answer.hits[: lookup.limit]
        if answer.vectors is None:
            answer.vectors = _vectors(answer.hits, lookup.space, rows)
            if answer.vectors is None:
                return None
        cosines = answer.vectors @ lookup.vector
        order = np.argsort(-cosines, kind="stable")[: lookup.limit]
        moved = float(np.linalg.norm(lookup.vector - answer.vector))
        if len(order) and cosines[order[-1]] < answer.floor + moved + TIE:
            return None
        return [(answer.hits[i][0], float(cosines[i])) for i in order.tolist()]


def _vectors(hits: list[tuple[K, float]], space: int, rows: Rows[K]) -> NDArray[np.float32] | None:
    known = rows([(key, space) for key, _ in hits])
    vectors = []
    for key, _ in hits:
        row = known.get(key)
        entry = None if row is None or space == CONTENT else row.trajectories.get(space)
        vector = row.content if row is not None and space == CONTENT else entry[0] if entry is not None else None
        if vector is None:
            return None
        vectors.append(vector)
    return np.stack(vectors)
