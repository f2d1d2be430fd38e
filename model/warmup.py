"""Warm-up: ``python -m model.warmup`` compiles every kernel that serving calls, so that no forecast waits for the compiler.

- ``compile_kernels()`` runs at install (Makefile, Docker images) and before a service listens. This takes a minute,
  or tens of milliseconds if the kernels are in the cache.
- ``forecast_once(...)`` runs after that. The function makes one forecast of each kind, which also warms up the
  networks, the encoder and the bank.

Kernels are compiled for the argument types that serving uses. ``tests/model/test_warmup.py`` checks that serving uses
no other types.
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
from model.features import creator, shape, signals, summary, tokens, trajectory
from model.growth import base_growth, curve_kernels, curves
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
    "F3": types.float64[:, :, ::1],
    "S1": types.float32[::1],
    "S2": types.float32[:, ::1],
    "S3": types.float32[:, :, ::1],
    "S4": types.float32[:, :, :, ::1],
    "constants": types.UniTuple(types.float64, len(cascade.CONSTANTS)),
    "weights": types.Tuple(
        [types.Array(types.float32, dims, "C") for dims in (2, 1, 2, 3, 3, 2, 3, 3, 2, 3, 2, 3, 2, 2, 1)]
    ),
}
"""Short names of array types. Each has a letter for the type of number (R: read-only int64, S: float32), and the
number of dimensions. All arrays are C-contiguous."""
KERNELS: Final[dict[Any, str]] = {
    rows._rows_until: "I1 I1 I1 I1 I1",
    rows._cells: "I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 I1 i I1 I1 I1 I1 I1 I1",
    rows._running_totals: "I1 I1 I1 B1 b I1",
    curves._snapshot_curves: "I1 I1 I1 I1 i I1 I2 I2 I1",
    curves._event_curves: "I1 I1 I1 I1 i I1 I2 I2 I1",
    curve_kernels.curve_growth: "R1 R1 i i I1 F1",
    base_growth._fill_many: "F1 F2 F3 F1 F2",
    neighbours.fill_features: "R1 R1 i i I1 f F1 f b i F1 F3 S1",
    creator.creator_features: "I1 I2 I2 I1 I1 i i I1 F1 F3 S1",
    tokens._tokenize: "I1 I1 I1 I1 I1 I1 I1 I1 I1 i I1 S2 S2 F2 F2 B2 B1 S2 S2 F2 F1 U1 F1",
    shape._fill: "I1 F2 F1 I1 I1 F1 f i i S2",
    trajectory._project: "S2 I1 S2 S2 S2",
    summary._summarise: "I1 F2 F2 F2 F1 I1 F1 F1 i S2",
    signals._read_signal: "I1 I1 F1 I1 F1 F1 F1 S2",
    cascade._expect: "I1 F2 F1 F1 F1 F1 F1 constants F1 F1 F2 F2",
    cpu._advance: "weights I1 I1 S2 S2 S4 S4 S2",
}
"""Each kernel that serving calls, and the types of its arguments."""


def compile_kernels() -> None:
    """Compile every kernel that serving calls, or load it from the cache."""
    for kernel, names in KERNELS.items():
        kernel.compile(tuple(_TYPES[name] for name in names.split()))


def forecast_once(forecaster: Forecaster, pool: StatePool | None = None) -> None:
    """Forecast all metrics of an artificial video three times: without history, with events, and with counters.

    Nothing is returned or stored.
    """
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
        asked = Request(video, history, now_us, horizons_us, metrics=forecaster.manifest.metrics)
        forecaster.forecast_metrics([asked], pool=pool)


def main() -> None:
    """Compile all kernels and print how long it took."""
    start = time.monotonic()
    compile_kernels()
    print(f"{len(KERNELS)} kernels ready in {time.monotonic() - start:.1f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
