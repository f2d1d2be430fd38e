"""Asking the engine less often: what was near a video a moment ago, and a proof that it still is.

A live video is forecast again and again, and between two forecasts its trajectory vector u moves by little. The first
search fetches WIDER times as many points as asked for; let c be the cosine of the last of them. When u has moved to
v, no point outside can have a cosine above c + |v - u| (Cauchy-Schwarz, all of unit length). So if the k-th best
of the points inside reaches that, the best k inside are the best k of all, and the engine need not be asked.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.bank.lru_cache import Cache
from model.bank.search import CONTENT, TIE, Ask
from model.bank.stored_video import StoredVideo

K = TypeVar("K", bound=Hashable)
WIDER: Final = 3
"""Points fetched for each point asked for."""

Nearest = Callable[[Sequence[Ask]], list[list[tuple[K, float]]]]
Rows = Callable[[Sequence[tuple[K, int]]], Mapping[K, StoredVideo]]


@dataclass(slots=True, eq=False)
class _Seen(Generic[K]):
    """What an engine answered to ``vector``: ``hits`` best first; nothing outside them has a cosine above ``floor``."""

    vector: NDArray[np.float32]
    hits: list[tuple[K, float]]
    floor: float
    vectors: NDArray[np.float32] | None = None


class SearchCache(Generic[K]):
    """Remembers what was near each of ``capacity`` videos, ``ttl_s`` seconds where others write to the bank as well."""

    def __init__(self, capacity: int, ttl_s: float | None = None) -> None:
        self._seen: Cache[tuple[str, int], _Seen[K]] = Cache(2 * capacity, ttl_s)
        self.hits = self.misses = 0

    def clear(self) -> None:
        """Forget everything, as new points may be nearer."""
        self._seen.clear()

    def nearest(
        self, asks: Sequence[Ask], steady: Callable[[Ask], bool], engine: Nearest[K], rows: Rows[K]
    ) -> list[list[tuple[K, float]]]:
        """What ``engine`` would answer; it is asked only where that does not follow from what it answered before.

        ``steady``: whether every point of the ask's space is usable at its ``now_us``, so that a later one changes nothing.
        """
        lasting = [steady(ask) for ask in asks]
        known = [self._again(ask, rows) if lasts else None for ask, lasts in zip(asks, lasting, strict=True)]
        missing = [i for i, hits in enumerate(known) if hits is None]
        self.hits += len(asks) - len(missing)
        self.misses += len(missing)
        wider = [replace(asks[i], limit=WIDER * asks[i].limit) if lasting[i] else asks[i] for i in missing]
        for i, ask, found in zip(missing, wider, engine(wider) if wider else [], strict=True):
            if lasting[i]:
                floor = found[-1][1] if len(found) == ask.limit else -np.inf
                self._seen.put((ask.owner, ask.space), _Seen(ask.vector, found, floor))
            known[i] = found[: asks[i].limit]
        return [hits if hits is not None else [] for hits in known]

    def _again(self, ask: Ask, rows: Rows[K]) -> list[tuple[K, float]] | None:
        seen = self._seen.get((ask.owner, ask.space))
        if seen is None or (len(seen.hits) < ask.limit and seen.floor > -np.inf):
            return None
        if not seen.hits or np.array_equal(seen.vector, ask.vector):
            return seen.hits[: ask.limit]
        if seen.vectors is None:
            seen.vectors = _vectors(seen.hits, ask.space, rows)
            if seen.vectors is None:
                return None
        cosines = seen.vectors @ ask.vector
        order = np.argsort(-cosines, kind="stable")[: ask.limit]
        moved = float(np.linalg.norm(ask.vector - seen.vector))
        if len(order) and cosines[order[-1]] < seen.floor + moved + TIE:
            return None
        return [(seen.hits[i][0], float(cosines[i])) for i in order.tolist()]


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
