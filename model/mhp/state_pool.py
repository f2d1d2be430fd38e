"""A cache of states between forecasts. A state can always be recomputed from the histogram.

A cached state has read only *committed* tokens: tokens whose age bin is not filling any more.

The pool only keeps track of which video has which slot, which slots are free, and the order of use. With each cached
state, the pool stores a hash of all tokens that the state has read. Before each use, this hash is compared with the
hash of the tokens that the state should have read. So the pool detects a late row without being notified. The pool
then restores the newest checkpoint with a matching hash, and the tokens after this checkpoint are read again. The
memory of a cached video does not grow with its history, except for one checkpoint every CHECKPOINT_TOKENS tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.features.tokens import Tokens
from model.lru_cache import LRUCache
from model.mhp.backend import Backend, States

CHECKPOINT_TOKENS: Final = 64
"""Number of tokens between two checkpoints. A checkpoint is a copy of the state. Checkpoints limit how many tokens
are read again after a late row."""


class _Checkpoint(NamedTuple):
    digest: int
    saved: tuple[Any, Any]
    hidden: NDArray[np.float32]


@dataclass(slots=True)
class _Entry:
    slot: int
    hidden: NDArray[np.float32]
    n_read: int = 0
    digest: int = 0
    checkpoints: list[_Checkpoint] = field(default_factory=list)


class StatePool:
    """A bounded LRU cache of states for one backend. A pool is not thread-safe, so its owner must hold a lock.

    Args:
        backend: computes the states.
        capacity: maximum number of cached videos, >= 0. When it is exceeded, the least recently used video is
            evicted.
    """

    def __init__(self, backend: Backend, capacity: int = 4096) -> None:
        if capacity < 0:
            raise ValueError(f"capacity must be at least 0, not {capacity}")
        self.capacity = capacity
        self.hits = self.misses = self.evictions = self.rollbacks = 0
        self._backend = backend
        self._states = backend.new_states(capacity)
        self._scratch = backend.new_states(0)
        self._free = list(range(capacity - 1, -1, -1))
        self._entries: LRUCache[str, _Entry] = LRUCache(capacity)

    @property
    def used(self) -> int:
        """Number of videos whose state is cached."""
        return len(self._entries)

    def forget(self, video_id: str) -> None:
        """Drop a video's state if it is cached."""
        entry = self._entries.drop(video_id)
        if entry:
            self._free.append(entry.slot)

    def read(self, video_ids: Sequence[str], tokens: Tokens) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Update every video's state to its committed tokens, and read the state at ``now``. The read does not change the cached state.

        Args:
            video_ids: one id for each sequence of ``tokens``. A video may occur more than once.
            tokens: S sequences.

        Returns:
            Two hidden states (S, d_model) float32. The first one is the state after the newest token, or zero if
            there is no token. The second one is the state as read at ``now``.
        """
        n = len(video_ids)
        if len(self._scratch.state) < n:
            self._scratch = self._backend.new_states(1 << (max(n, 64) - 1).bit_length())
        newest = np.zeros((n, self._backend.shape.d_model), dtype=np.float32)
        for rows in self._groups(video_ids):
            self._commit(video_ids, rows, tokens, newest)
        every = np.arange(n, dtype=np.int64)
        pending = np.flatnonzero(tokens.pending)
        if len(pending):
            last = tokens.offsets[pending + 1] - 1
            newest[pending] = self._backend.advance(
                self._scratch, pending, np.arange(len(pending) + 1), tokens.features[last], tokens.clock[last]
            )
        read = self._backend.advance(self._scratch, every, np.arange(n + 1), tokens.read_features, tokens.read_clock)
        return newest, read

    def _groups(self, video_ids: Sequence[str]) -> list[list[int]]:
        """Return groups of rows that can be updated together.

        The videos of a group are distinct, and there are no more videos in a group than slots.
        """
        if not self.capacity:
            return [list(range(len(video_ids)))]
        groups: list[list[int]] = []
        seen: set[str] = set()
        for row, video_id in enumerate(video_ids):
            if not groups or video_id in seen or len(seen) == self.capacity:
                groups.append([])
                seen = set()
            groups[-1].append(row)
            seen.add(video_id)
        return groups

    def _commit(self, video_ids: Sequence[str], rows: list[int], tokens: Tokens, newest: NDArray[np.float32]) -> None:
        """Update the videos of a group to their committed tokens, and copy their states to the scratch slots ``rows``."""
        spans = [(int(tokens.offsets[row]), int(tokens.offsets[row + 1]) - int(tokens.pending[row])) for row in rows]
        if not self.capacity:
            self.misses += len(rows)
            for row in rows:
                self._scratch.clear_slot(row)
            newest[rows] = self._run(self._scratch, rows, tokens, spans)
            return
        entries = [self._entry(video_ids[row]) for row in rows]
        try:
            self._update(entries, tokens, spans)
        except BaseException:
            # Some states may be partly updated, so all of them are dropped.
            for row in rows:
                self.forget(video_ids[row])
            raise
        for row, entry in zip(rows, entries, strict=True):
            newest[row] = entry.hidden
        self._scratch.copy_slots(rows, self._states, [entry.slot for entry in entries])

    def _update(self, entries: list[_Entry], tokens: Tokens, spans: list[tuple[int, int]]) -> None:
        for entry, (start, stop) in zip(entries, spans, strict=True):
            if entry.n_read and (
                entry.n_read > stop - start or int(tokens.prefix[start + entry.n_read - 1]) != entry.digest
            ):
                self._roll_back(entry, tokens.prefix[start:stop])
        while behind := [
            # Each video advances to its next checkpoint. One call advances all videos.
            (
                entry,
                start + entry.n_read,
                min(stop, start + (entry.n_read // CHECKPOINT_TOKENS + 1) * CHECKPOINT_TOKENS),
            )
            for entry, (start, stop) in zip(entries, spans, strict=True)
            if start + entry.n_read < stop
        ]:
            slots, next_spans = [entry.slot for entry, *_ in behind], [(start, stop) for _, start, stop in behind]
            hidden = self._run(self._states, slots, tokens, next_spans)
            for (entry, start, stop), one in zip(behind, hidden, strict=True):
                entry.hidden, entry.digest = one.copy(), int(tokens.prefix[stop - 1])
                entry.n_read += stop - start
                if entry.n_read % CHECKPOINT_TOKENS == 0:
                    saved = self._states.take_slot(entry.slot)
                    entry.checkpoints.append(_Checkpoint(entry.digest, saved, one.copy()))

    def _run(
        self, states: States, slots: list[int], tokens: Tokens, spans: list[tuple[int, int]]
    ) -> NDArray[np.float32]:
        """Read a span of tokens into each slot. Return the hidden state (S, d_model) after the last token of each slot."""
        offsets = np.array([0, *accumulate(stop - start for start, stop in spans)])
        if len(slots) == 1:
            start, stop = spans[0]
            features, clock = tokens.features[start:stop], tokens.clock[start:stop]
        else:
            features, clock = (
                np.concatenate([part[start:stop] for start, stop in spans]) for part in (tokens.features, tokens.clock)
            )
        return self._backend.advance(states, np.array(slots), offsets, features, clock)

    def _roll_back(self, entry: _Entry, prefix: NDArray[np.uint64]) -> None:
        """Restore the newest checkpoint that agrees with ``prefix``, which holds the hashes of the committed tokens.

        If no checkpoint agrees, restore the empty state.
        """
        self.rollbacks += 1
        ends = range(CHECKPOINT_TOKENS, len(prefix) + 1, CHECKPOINT_TOKENS)
        keep = 0
        for checkpoint, end in zip(entry.checkpoints, ends, strict=False):
            if checkpoint.digest != int(prefix[end - 1]):
                break
            keep += 1
        del entry.checkpoints[keep:]
        if keep:
            last = entry.checkpoints[-1]
            self._states.put_slot(entry.slot, last.saved)
            entry.hidden, entry.digest = last.hidden.copy(), last.digest
        else:
            self._states.clear_slot(entry.slot)
            entry.hidden, entry.digest = np.zeros_like(entry.hidden), 0
        entry.n_read = keep * CHECKPOINT_TOKENS

    def _entry(self, video_id: str) -> _Entry:
        entry = self._entries.get(video_id)
        if entry:
            self.hits += 1
            return entry
        self.misses += 1
        if not self._free:
            self._free.append(self._entries.evict().slot)
            self.evictions += 1
        shape = self._backend.shape
        entry = _Entry(self._free.pop(), np.zeros(shape.d_model, np.float32))
        self._states.clear_slot(entry.slot)
        self._entries.put(video_id, entry)
        return entry
