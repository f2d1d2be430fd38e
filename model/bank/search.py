"""Turns the nearest points into candidates. This step of a search does not depend on the engine.

An engine provides two functions: ``nearest`` (points by cosine, filtered by time) and ``rows`` (videos by key). This
module excludes the target, orders ties, joins the results and truncates them. A key identifies a video inside one
engine.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from model.bank.interface import BankQuery, Candidate
from model.bank.stored_video import StoredVideo
from model.bank.validation import check_query, unit

K = TypeVar("K", bound=Hashable)
CONTENT: Final = -1
"""Number of the space of content vectors. For trajectories, each age bucket (>= 0) is a space of its own."""
TIE: Final = 1e-6
"""Two cosines are treated as equal if they differ by at most this much, because engines round differently in float32."""
MAX_LIMIT: Final = 4096
"""Maximum number of points that are fetched to resolve a tie. If more points are tied, the engine chooses among them."""


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """A search in one space for the ``limit`` points that are nearest to a unit vector and usable at ``now_us``.

    ``owner`` is the id of the target video.
    """

    owner: str
    space: int
    vector: NDArray[np.float32]
    now_us: int
    limit: int


def search(
    queries: Sequence[BankQuery],
    dims: tuple[int, int],
    key: Callable[[str], K],
    nearest: Callable[[Sequence[Lookup]], list[list[tuple[K, float]]]],
    rows: Callable[[Sequence[tuple[K, int]]], Mapping[K, StoredVideo]],
) -> list[list[Candidate]]:
    """Run the queries as ``Bank.search`` specifies. Return the candidates of each query.

    Args:
        queries: the queries.
        dims: dimensions of the content vectors and of the trajectory vectors.
        key: returns the key of a video id.
        nearest: returns (key, cosine) of the nearest points for each lookup, best first.
        rows: takes pairs of key and age bucket, and returns the videos by key. Videos that no longer exist are left
            out.
    """
    lookups: list[Lookup] = []
    slots: list[tuple[int | None, int | None]] = []
    for query in queries:
        check_query(query)
        slots.append(
            (
                _add_lookup(lookups, CONTENT, unit(query.content, dims[0], "content"), query),
                _add_lookup(lookups, query.age_bucket, unit(query.trajectory, dims[1], "trajectory"), query),
            )
        )
    excluded = [key(query.exclude) for query in queries]
    owner = {slot: i for i, pair in enumerate(slots) for slot in pair if slot is not None}
    hits = _settled(lookups, [excluded[owner[slot]] for slot in range(len(lookups))], nearest)
    wanted = {(k, queries[owner[slot]].age_bucket): None for slot, found in enumerate(hits) for k, _ in found}
    known = rows(list(wanted)) if wanted else {}
    return [
        _union(
            query, *([] if slot is None else _ranked(hits[slot], lookups[slot], query.limit, known) for slot in pair)
        )
        for query, pair in zip(queries, slots, strict=True)
    ]


def _add_lookup(lookups: list[Lookup], space: int, vector: NDArray[np.float32] | None, query: BankQuery) -> int | None:
    if vector is None:
        return None
    # Two additional points are fetched. One replaces the target if the target is found. The other detects a tie at the last position.
    lookups.append(Lookup(query.exclude, space, vector, query.now_us, query.limit + 2))
    return len(lookups) - 1


def _settled(
    lookups: Sequence[Lookup],
    excluded: Sequence[K],
    nearest: Callable[[Sequence[Lookup]], list[list[tuple[K, float]]]],
) -> list[list[tuple[K, float]]]:
    """Return the points nearest to each lookup, without the target. More points are fetched until the last position is not tied."""
    hits: list[list[tuple[K, float]]] = [[] for _ in lookups]
    pending = {slot: lookup for slot, lookup in enumerate(lookups)}
    while pending:
        unsettled = {}
        for (slot, lookup), found in zip(pending.items(), nearest(list(pending.values())), strict=True):
            hits[slot] = [hit for hit in found if hit[0] != excluded[slot]]
            last = lookups[slot].limit - 2
            tied = len(hits[slot]) > last and hits[slot][last - 1][1] - hits[slot][-1][1] <= TIE
            if tied and len(found) == lookup.limit < MAX_LIMIT:
                unsettled[slot] = replace(lookup, limit=min(4 * lookup.limit, MAX_LIMIT))
        pending = unsettled
    return hits


def _ranked(
    hits: list[tuple[K, float]], lookup: Lookup, limit: int, known: Mapping[K, StoredVideo]
) -> list[StoredVideo]:
    """Return the best ``limit`` usable videos. Videos with equal cosines are ordered by video_id."""
    ranked: list[StoredVideo] = []
    run: list[StoredVideo] = []
    previous = np.inf
    for k, cosine in hits:
        found = known.get(k)
        # The engine has already filtered by time. But a point may be replaced between the calls of ``nearest`` and ``rows``.
        if found is None or not _usable(found, lookup):
            continue
        if previous - cosine > TIE:
            ranked += sorted(run, key=_video_id) if len(run) > 1 else run
            run = []
            if len(ranked) >= limit:
                break
        run.append(found)
        previous = cosine
    return (ranked + sorted(run, key=_video_id))[:limit]


def _usable(found: StoredVideo, lookup: Lookup) -> bool:
    if lookup.space == CONTENT:
        return found.usable_from_us <= lookup.now_us
    return found.trajectory(lookup.space, lookup.now_us) is not None


def _video_id(found: StoredVideo) -> str:
    return found.video_id


def _union(query: BankQuery, by_content: list[StoredVideo], by_trajectory: list[StoredVideo]) -> list[Candidate]:
    union = {found.video_id: found for found in by_content + by_trajectory}
    return [found.candidate(query.age_bucket, query.now_us) for found in union.values()]
