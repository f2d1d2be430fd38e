"""Made-up videos of every kind that a service meets: asked of a model first, they touch all that its forecasts need.

A kernel is compiled for the types of its arguments where it is first called, which takes seconds. So there is one of each kind:
fed by events, by counters, by both, by nothing; with words and without; with a creator that the bank knows and with none.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.bank import BankQuery, Candidate, Curve, NoBank, PastVideo
from model.bins import HOUR_US, SECOND_US, bin_index
from model.bundle import Manifest
from model.forecaster import Request
from model.growth import CURVE_EDGES_US
from model.history import History, Mode, Series
from model.video import Video
from service.store.snapshot import Snapshot

_NAME: Final = "m3tr example"
_AGES_US: Final = (20 * 60 * SECOND_US, 5 * HOUR_US, 30 * HOUR_US, 100 * 24 * HOUR_US)


def snapshots(manifest: Manifest, now_us: int) -> list[Snapshot]:
    """The videos, as a store would give them; one has no row yet, and one is older than any forecast looks back."""
    types = manifest.types
    half = len(types) // 2
    modes: list[dict[str, Mode]] = [
        dict.fromkeys(types, "events"),
        dict.fromkeys(types, "counters"),
        {**dict.fromkeys(types[:half], "events"), **dict.fromkeys(types[half:], "counters")},
    ]
    made = [_snapshot(0, now_us - HOUR_US, now_us, {})]
    for age_us in _AGES_US:
        for of_types in modes:
            made.append(_snapshot(len(made), now_us - age_us, now_us, of_types))
    return made


def requests(manifest: Manifest, now_us: int) -> list[Request]:
    """What is asked about them: up to four horizons within the bundle's longest."""
    most = manifest.max_horizon_us
    horizons_us = tuple(sorted({min(n * HOUR_US, most) for n in (1, 6, 24)} | {most}))
    return [Request(s.video, s.history, now_us, horizons_us) for s in snapshots(manifest, now_us)]


def _snapshot(number: int, published_us: int, now_us: int, modes: dict[str, Mode]) -> Snapshot:
    words = {"title": f"{_NAME} {number}", "description": "A video about nothing.", "tags": "one,two"}
    video = Video(
        f"{_NAME} {number}",
        published_us,
        category="Music" if number % 2 else None,
        language="en" if number % 2 else None,
        duration_s=60.0 * number or None,
        creator_id=_NAME if number % 3 else None,
        creator_name=_NAME if number % 3 else None,
        creator_followers=1000.0 if number % 4 else None,
        **(words if number != 1 else {}),
    )
    bins = np.unique(bin_index(np.linspace(0, now_us - published_us - SECOND_US, 150).astype(np.int64)))
    series = {kind: Series(mode, bins, _values(mode, len(bins))) for kind, mode in modes.items()}
    reach = {int(b): 500 for b in bins[::2]} if "events" in modes.values() else {}
    return Snapshot(1, video, History(series, reach), now_us - SECOND_US if modes else None)


def _values(mode: Mode, n: int) -> NDArray[np.int64]:
    return np.full(n, 3, np.int64) if mode == "events" else 3 * np.arange(1, n + 1)


@dataclass(frozen=True)
class ExampleBank(NoBank):
    """Knows one past video, which is near everything and by everybody; its arrays are as a real bank's, read-only."""

    content_dim: int
    trajectory_dim: int

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """That video for each query."""
        content, trajectory = _unit(self.content_dim), _unit(self.trajectory_dim)
        return [
            [Candidate("past", query.now_us // 2, None, _NAME, _curve(), content, trajectory)] if query.limit else []
            for query in queries
        ]

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """That video of each creator."""
        return {creator_id: [PastVideo("past", 0, _curve())] for creator_id in creator_ids}


def _curve() -> Curve:
    values = 10 * np.arange(1, len(CURVE_EDGES_US), dtype=np.int64)
    ages_us, values = np.stack([CURVE_EDGES_US[1:], values])
    for array in (ages_us, values):
        array.flags.writeable = False
    return Curve(ages_us, values)


def _unit(dim: int) -> NDArray[np.float32]:
    vector = np.zeros(dim, np.float32)
    vector[:1] = 1
    vector.flags.writeable = False
    return vector
