"""Compiled ahead: ``python -m model.warm`` compiles every kernel that serving calls, so that no forecast waits for a compiler.

    compile_kernels()     at install (Makefile, Docker images) and before a service listens; a minute, or tens of ms from the cache
    forecast_once(...)    then: a forecast of each kind, which also wakes the networks, the encoder and the bank

A kernel's types are those that serving calls it with; ``tests/model/test_warm.py`` sees that there are no others.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numba import types

from model import cascade
from model.bank import neighbours
from model.engagement import rows
from model.engagement.bins import HOUR_US
from model.engagement.history import History, Series
from model.engagement.video import Video
from model.features import creator, summary, tokens
from model.growth import curve_kernels, curves
from model.mhp.backends import cpu

if TYPE_CHECKING:
    from model.forecaster import Forecaster
    from model.mhp.state_pool import StatePool

_TYPES: Final = {
    "i": types.int64,
    "f": types.float64,
    "b": types.boolean,
    "I1": types.int64[::1],
    "I2": types.int64[:, ::1],
    "R1": types.Array(types.int64, 1, "C", readonly=True),
    "U1": types.uint64[::1],
    "B1": types.boolean[::1],
    "B2": types.boolean[:, ::1],
    "F1": types.float64[::1],
    "F2": types.float64[:, ::1],
    "S1": types.float32[::1],
    "S2": types.float32[:, ::1],
    "S3": types.float32[:, :, ::1],
    "S4": types.float32[:, :, :, ::1],
    "constants": types.UniTuple(types.float64, len(cascade.CONSTANTS)),
    "weights": types.Tuple(
        [types.Array(types.float32, dims, "C") for dims in (2, 1, 2, 3, 3, 2, 3, 3, 2, 3, 2, 3, 2, 2, 1)]
    ),
}
"""Short names: a letter for the number (R: int64 that is read only, S: float32) and how many dimensions; all C-contiguous."""
KERNELS: Final[dict[Any, str]] = {
    rows._rows_until: "I1 I1 I1 I1 I1",
    rows._cells: "I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 i I1 I1 I1 I1 I1 I1",
    rows._running_totals: "I1 I1 I1 B1 b I1",
    curves._snapshot_curves: "I1 I1 I1 I1 i I1 I2 I2 I1",
    curves._event_curves: "I1 I1 I1 I1 i I1 I2 I2 I1",
    curve_kernels.curve_growth: "R1 R1 i i I1 F1",
    neighbours.fill_features: "R1 R1 i i I1 f F1 f b F1 F1 S1",
    creator.creator_features: "I1 I2 I2 I1 I1 i i I1 F1 S1",
    tokens._tokenize: "I1 I1 I1 I1 I1 I1 I1 I1 I1 i I1 S2 S2 F2 F2 B2 B1 S2 S2 F2 F1 U1",
    summary._summarise: "I1 F2 F2 F2 F1 I1 F1 F1 i S2",
    cascade._expect: "I1 F2 F1 F1 F1 F1 F1 constants F1 F1 F2 F2",
    cpu._advance: "weights I1 I1 S2 S2 S4 S4 S2",
}


def compile_kernels() -> None:
    """Compile, or load from the cache, every kernel that serving calls."""
    for kernel, names in KERNELS.items():
        kernel.compile(tuple(_TYPES[name] for name in names.split()))


def forecast_once(forecaster: Forecaster, pool: StatePool | None = None) -> None:
    """Forecast a video that nobody has: as new, fed by events and fed by counters; answers nothing, keeps nothing."""
    from model.forecast import Request

    now_us = time.time_ns() // 1000
    horizons_us = (min(HOUR_US, forecaster.manifest.max_horizon_us),)
    series = np.array([0, 8]), np.array([1, 3])
    kinds = forecaster.manifest.types
    histories = [
        History({}),
        History({kind: Series("events", *series) for kind in kinds}),
        History({kind: Series("counters", *series) for kind in kinds}),
    ]
    video = Video("", now_us - HOUR_US, title="-", creator_id="-")
    for history in histories:
        forecaster.forecast([Request(video, history, now_us, horizons_us)], pool=pool)


def main() -> None:
    """Compile and say how long it took."""
    began = time.monotonic()
    compile_kernels()
    print(f"{len(KERNELS)} kernels ready in {time.monotonic() - began:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
