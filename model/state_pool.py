"""States of live videos, kept between forecasts: a cache over the histogram, nothing more.

The allocator is bookkeeping only: video -> slot, a free list and an order of use. A cached state knows the hash of all
it has read, and is compared with what it should have read, so that a late row needs no message: the state rolls back
to the newest checkpoint whose hash still stands, and replays from there. What a cached video costs does not grow with its
history, but for one checkpoint every CHECKPOINT_TOKENS.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.mhp.backend import Backend, States
from model.tokens import Tokens

CHECKPOINT_TOKENS: Final = 64
"""A copy of the state is kept every so many tokens, which bounds the replay after a late row."""


class _Checkpoint(NamedTuple):
    digest: int
    saved: tuple[Any, Any]
    hidden: NDArray[np.float32]


@dataclass(slots=True)
class _Entry:
    slot: int
    hidden: NDArray[np.float32]
    done: int = 0
    digest: int = 0
    checkpoints: list[_Checkpoint] = field(default_factory=list)


class StatePool:
    """A bounded LRU cache of states for one backend; not thread-safe, its owner holds a lock.

    Args:
        backend: computes the states.
        capacity: videos kept, >= 0; beyond it the least recently used is dropped.
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
        self._entries: OrderedDict[str, _Entry] = OrderedDict()

    @property
    def used(self) -> int:
        """Videos whose state is cached."""
        return len(self._entries)

    def forget(self, video_id: str) -> None:
        """Drop a video's state, if it is cached."""
        entry = self._entries.pop(video_id, None)
        if entry:
            self._free.append(entry.slot)

    def read(self, video_ids: Sequence[str], tokens: Tokens) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Bring every video's state up to its committed tokens and read it at ``now``; the cached state is not touched by the read.

        Args:
            video_ids: one a sequence of ``tokens``; a video may occur more than once.
            tokens: S sequences.

        Returns:
            Two (S, d_model) float32: hidden after the newest token (zeros without one), and as read at ``now``.
        """
        n = len(video_ids)
        if len(self._scratch.state) < n:
            self._scratch = self._backend.new_states(max(n, 64))
        newest = np.zeros((n, self._backend.shape.d_model), dtype=np.float32)
        for row, video_id in enumerate(video_ids):
            start = int(tokens.offsets[row])
            stop = int(tokens.offsets[row + 1]) - int(tokens.pending[row])
            span = slice(start, stop)
            self._commit(video_id, row, tokens.features[span], tokens.clock[span], tokens.prefix[span], newest)
        every = np.arange(n, dtype=np.int64)
        pending = np.flatnonzero(tokens.pending)
        if len(pending):
            last = tokens.offsets[pending + 1] - 1
            newest[pending] = self._backend.advance(
                self._scratch, pending, np.arange(len(pending) + 1), tokens.features[last], tokens.clock[last]
            )
        read = self._backend.advance(self._scratch, every, np.arange(n + 1), tokens.read_features, tokens.read_clock)
        return newest, read

    def _commit(
        self,
        video_id: str,
        row: int,
        features: NDArray[np.float32],
        clock: NDArray[np.float32],
        prefix: NDArray[np.uint64],
        newest: NDArray[np.float32],
    ) -> None:
        entry = self._entry(video_id)
        if entry is None:
            self._scratch.clear_slot(row)
            if len(features):
                newest[row] = self._run(self._scratch, row, features, clock)
            return
        try:
            self._bring_up(entry, features, clock, prefix)
        except BaseException:
            # Half a step may have been written in place: a state that is not known is not kept.
            self.forget(video_id)
            raise
        newest[row] = entry.hidden
        self._scratch.put_slot(row, self._states.take_slot(entry.slot))

    def _bring_up(
        self, entry: _Entry, features: NDArray[np.float32], clock: NDArray[np.float32], prefix: NDArray[np.uint64]
    ) -> None:
        if entry.done and (entry.done > len(features) or int(prefix[entry.done - 1]) != entry.digest):
            self._roll_back(entry, prefix)
        while entry.done < len(features):
            stop = min(len(features), (entry.done // CHECKPOINT_TOKENS + 1) * CHECKPOINT_TOKENS)
            span = slice(entry.done, stop)
            entry.hidden = self._run(self._states, entry.slot, features[span], clock[span])
            entry.done, entry.digest = stop, int(prefix[stop - 1])
            if stop % CHECKPOINT_TOKENS == 0:
                saved = self._states.take_slot(entry.slot)
                entry.checkpoints.append(_Checkpoint(entry.digest, saved, entry.hidden.copy()))

    def _run(
        self, states: States, slot: int, features: NDArray[np.float32], clock: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        offsets = np.array([0, len(features)])
        hidden: NDArray[np.float32] = self._backend.advance(states, np.array([slot]), offsets, features, clock)[0]
        return hidden

    def _roll_back(self, entry: _Entry, prefix: NDArray[np.uint64]) -> None:
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
        entry.done = keep * CHECKPOINT_TOKENS

    def _entry(self, video_id: str) -> _Entry | None:
        entry = self._entries.get(video_id)
        if entry:
            self.hits += 1
            self._entries.move_to_end(video_id)
            return entry
        self.misses += 1
        if not self.capacity:
            return None
        if not self._free:
            _, oldest = self._entries.popitem(last=False)
            self._free.append(oldest.slot)
            self.evictions += 1
        shape = self._backend.shape
        entry = _Entry(self._free.pop(), np.zeros(shape.d_model, np.float32))
        self._states.clear_slot(entry.slot)
        self._entries[video_id] = entry
        return entry
