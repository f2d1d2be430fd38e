"""From nearest points to candidates: what every engine does the same way.

An engine offers two primitives, ``nearest`` (points by cosine, filtered by time) and ``rows`` (videos by key). Here is
the rest: exclusion of the target, order of ties, union, truncation. A key names a video inside one engine.
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
"""Cosines closer than this are equal: engines differ by their rounding in float32."""
WIDEST: Final = 4096
"""Most points asked for to settle a tie; beyond it the engine's choice among equals stands."""


@dataclass(frozen=True, slots=True, eq=False)
class Ask:
    """The ``limit`` points of a space nearest to the unit vector, usable at ``now_us``; ``owner`` is the video that asks."""

    owner: str
    space: int
    vector: NDArray[np.float32]
    now_us: int
    limit: int


def search(
    queries: Sequence[BankQuery],
    dims: tuple[int, int],
    key: Callable[[str], K],
    nearest: Callable[[Sequence[Ask]], list[list[tuple[K, float]]]],
    rows: Callable[[Sequence[tuple[K, int]]], Mapping[K, StoredVideo]],
) -> list[list[Candidate]]:
    """Answer queries as Bank.search promises.

    ``dims`` are (content, trajectory). ``nearest`` answers each ask with (key, cosine), best first. ``rows`` takes
    pairs of key and age bucket, and leaves out videos that are gone.
    """
    asks: list[Ask] = []
    slots: list[tuple[int | None, int | None]] = []
    for query in queries:
        check_query(query)
        slots.append(
            (
                _ask(asks, CONTENT, unit(query.content, dims[0], "content"), query),
                _ask(asks, query.age_bucket, unit(query.trajectory, dims[1], "trajectory"), query),
            )
        )
    excluded = [key(query.exclude) for query in queries]
    owner = {slot: i for i, pair in enumerate(slots) for slot in pair if slot is not None}
    hits = _settled(asks, [excluded[owner[slot]] for slot in range(len(asks))], nearest)
    wanted = {(k, queries[owner[slot]].age_bucket): None for slot, found in enumerate(hits) for k, _ in found}
    known = rows(list(wanted)) if wanted else {}
    return [
        _union(query, *([] if slot is None else _ranked(hits[slot], asks[slot], query.limit, known) for slot in pair))
        for query, pair in zip(queries, slots, strict=True)
    ]


def _ask(asks: list[Ask], space: int, vector: NDArray[np.float32] | None, query: BankQuery) -> int | None:
    if vector is None:
        return None
    # One more for the target itself, and one more to see whether the last place is shared.
    asks.append(Ask(query.exclude, space, vector, query.now_us, query.limit + 2))
    return len(asks) - 1


def _settled(
    asks: Sequence[Ask],
    excluded: Sequence[K],
    nearest: Callable[[Sequence[Ask]], list[list[tuple[K, float]]]],
) -> list[list[tuple[K, float]]]:
    """Hits without the target, reaching past every tie for the last place."""
    hits: list[list[tuple[K, float]]] = [[] for _ in asks]
    pending = {slot: ask for slot, ask in enumerate(asks)}
    while pending:
        unsettled = {}
        for (slot, ask), found in zip(pending.items(), nearest(list(pending.values())), strict=True):
            hits[slot] = [hit for hit in found if hit[0] != excluded[slot]]
            last = asks[slot].limit - 2
            shared = len(hits[slot]) > last and hits[slot][last - 1][1] - hits[slot][-1][1] <= TIE
            if shared and len(found) == ask.limit < WIDEST:
                unsettled[slot] = replace(ask, limit=min(4 * ask.limit, WIDEST))
        pending = unsettled
    return hits


def _ranked(hits: list[tuple[K, float]], ask: Ask, limit: int, known: Mapping[K, StoredVideo]) -> list[StoredVideo]:
    """The best ``limit`` rows that were usable, runs of equal cosines ordered by video_id."""
    ranked: list[StoredVideo] = []
    run: list[StoredVideo] = []
    previous = np.inf
    for k, cosine in hits:
        found = known.get(k)
        # The engine has filtered; this guards against a point that was replaced between its two answers.
        if found is None or not _usable(found, ask):
            continue
        if previous - cosine > TIE:
            ranked += sorted(run, key=_video_id) if len(run) > 1 else run
            run = []
            if len(ranked) >= limit:
                break
        run.append(found)
        previous = cosine
    return (ranked + sorted(run, key=_video_id))[:limit]


def _usable(found: StoredVideo, ask: Ask) -> bool:
    if ask.space == CONTENT:
        return found.usable_from_us <= ask.now_us
    return found.trajectory(ask.space, ask.now_us) is not None


def _video_id(found: StoredVideo) -> str:
    return found.video_id


def _union(query: BankQuery, by_content: list[StoredVideo], by_trajectory: list[StoredVideo]) -> list[Candidate]:
    union = {found.video_id: found for found in by_content + by_trajectory}
    return [found.candidate(query.age_bucket, query.now_us) for found in union.values()]
