"""One interface for whatever computes the Mamba-Hawkes state online; one conformance suite tests them all."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.errors import M3TRError
from model.mhp.shape import MHPShape

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class States:
    """Slabs of slots; the first axis is the slot. What they hold is known to their backend alone."""

    state: Any
    window: Any

    def take_slot(self, slot: int) -> tuple[Any, Any]:
        """A copy of one slot."""
        return self.state[slot].copy(), self.window[slot].copy()

    def put_slot(self, slot: int, saved: tuple[Any, Any]) -> None:
        """Overwrite a slot with what ``take_slot`` returned."""
        self.state[slot], self.window[slot] = saved

    def copy_slots(self, rows: list[int], source: States, slots: list[int]) -> None:
        """Overwrite ``rows`` with ``slots`` of other states."""
        if len(rows) == 1:
            # Many times faster than by an index array.
            row, slot = rows[0], slots[0]
            self.state[row], self.window[row] = source.state[slot], source.window[slot]
        else:
            self.state[rows], self.window[rows] = source.state[slots], source.window[slots]

    def clear_slot(self, slot: int) -> None:
        """Back to the state before any token."""
        self.state[slot] = 0
        self.window[slot] = 0


class Backend(Protocol):
    """Computes states in place."""

    name: str
    shape: MHPShape

    def new_states(self, slots: int) -> States:
        """Zeroed slabs for ``slots`` videos."""
        ...

    def advance(
        self, states: States, slots: NDArray[np.int64], offsets: NDArray[np.int64], features: NDArray[np.float32],
        clock: NDArray[np.float32],
    ) -> NDArray[np.float32]:  # fmt: skip
        """Read tokens into slots, in place.

        Args:
            states: slabs of this backend.
            slots: (S,) int64, each slot at most once.
            offsets: (S + 1,) int64, the tokens of each slot in order.
            features: (n, F) float32.
            clock: (n, 2) float32, hours and log-age since the token before.

        Returns:
            Hidden state (S, d_model) float32 after each slot's last token; zeros for a slot without tokens.
        """
        ...


def choose_backend(device: str, shape: MHPShape, weights: Mapping[str, NDArray[np.float32]]) -> Backend:
    """Backend for ``device``: "cpu", "cuda", or "auto", CUDA where PyTorch finds a card and mamba-ssm is installed.

    Raises:
        M3TRError: "cuda" was asked for and the card or mamba-ssm is missing.
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise M3TRError(f"device: {device!r}; allowed: auto, cpu, cuda")
    if device != "cpu" and _cuda_present():
        from model.mhp.backends.cuda import CUDABackend

        try:
            return CUDABackend(shape, weights)
        except ImportError as error:
            problem = f"mamba-ssm cannot be imported: {error}"
            if device == "cuda":
                raise M3TRError(f"device: 'cuda', but {problem}; install the extra [gpu]") from error
            log.warning("there is a CUDA device, but %s; the CPU is used; install the extra [gpu] to use it", problem)
    elif device == "cuda":
        raise M3TRError("device: 'cuda', but no CUDA device and driver were found; allowed here: auto, cpu")
    from model.mhp.backends.cpu import CPUBackend

    return CPUBackend(shape, weights)


def _cuda_present() -> bool:
    # The driver's library is asked first: importing torch takes a second and 0.7 GB, which a CPU server need not pay.
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False
    import torch

    return torch.cuda.is_available()
