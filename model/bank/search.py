"""From nearest points to candidates: the part of a search that does not depend on the engine.

An engine has two primitives: ``nearest`` (points by cosine, filtered by time) and ``rows`` (videos by key). This module does the
rest: it excludes the target, orders ties, and joins and truncates the results. A key names a video inside one engine.
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
"""The space of content vectors; a trajectory's space is its age bucket (>= 0)."""
TIE: Final = 1e-6
"""Cosines closer than this are equal: engines round differently in float32."""
MAX_LIMIT: Final = 4096
"""Most points fetched to settle a tie. Beyond it the engine chooses among equals."""


@dataclass(frozen=True, slots=True, eq=False)
class Lookup:
    """The search for the ``limit`` points of a space that are nearest to a unit vector and usable at ``now_us``.

    ``owner`` is the id of the video that searches.
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
    """Answer queries as ``Bank.search`` specifies.

    ``dims`` are (content, trajectory). ``nearest`` answers each lookup with (key, cosine), best first. ``rows`` takes pairs of key and
    age bucket, and leaves out videos that are gone.
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
    # One more for the target itself, and one more to see whether the last position is tied.
    lookups.append(Lookup(query.exclude, space, vector, query.now_us, query.limit + 2))
    return len(lookups) - 1


def _settled(
    lookups: Sequence[Lookup],
    excluded: Sequence[K],
    nearest: Callable[[Sequence[Lookup]], list[list[tuple[K, float]]]],
) -> list[list[tuple[K, float]]]:
    """Hits without the target, extended until the last position is not tied."""
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
    """The best ``limit`` usable rows; runs of equal cosines are ordered by video_id."""
    ranked: list[StoredVideo] = []
    run: list[StoredVideo] = []
    previous = np.inf
    for k, cosine in hits:
        found = known.get(k)
        # The engine has filtered already. This is for a point that was replaced between its two answers.
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
