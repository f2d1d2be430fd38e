"""The interface of a backend, which computes the Mamba-Hawkes states in serving."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.mhp.shape import MHPShape


@dataclass(frozen=True, slots=True)
class States:
    """Arrays whose first axis is the slot. Only the backend that made them knows the meaning of their values."""

    state: Any
    window: Any

    def take_slot(self, slot: int) -> tuple[Any, Any]:
        """Return a copy of one slot."""
        return self.state[slot].copy(), self.window[slot].copy()

    def put_slot(self, slot: int, saved: tuple[Any, Any]) -> None:
        """Overwrite a slot with a copy that ``take_slot`` returned."""
        self.state[slot], self.window[slot] = saved

    def copy_slots(self, rows: list[int], source: States, slots: list[int]) -> None:
        """Copy the slots ``slots`` of ``source`` into the slots ``rows`` of these states."""
        if len(rows) == 1:
            # Plain indices are many times faster than index arrays.
            row, slot = rows[0], slots[0]
            self.state[row], self.window[row] = source.state[slot], source.window[slot]
        else:
            self.state[rows], self.window[rows] = source.state[slots], source.window[slots]

    def clear_slot(self, slot: int) -> None:
        """Reset a slot to the state before any token."""
        self.state[slot] = 0
        self.window[slot] = 0


class Backend(Protocol):
    """Computes states in place. One conformance suite tests all implementations."""

    name: str
    shape: MHPShape

    def new_states(self, slots: int) -> States:
        """Return zero states for ``slots`` videos."""
        ...

    def advance(
        self,
        states: States,
        slots: NDArray[np.int64],
        offsets: NDArray[np.int64],
        features: NDArray[np.float32],
        clock: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """Read tokens into slots. The states are changed in place.

        Args:
            states: states of this backend.
            slots: (S,) int64 slots. Each slot occurs at most once.
            offsets: (S + 1,) int64. The slot ``slots[s]`` reads the tokens offsets[s] .. offsets[s + 1] - 1.
            features: (n, F) float32.
            clock: (n, 2) float32, time since the previous token in hours and in log-age.

        Returns:
            The hidden state after each slot's last token, (S, d_model) float32. This state is zero for a slot without
            tokens.
        """
        ...
