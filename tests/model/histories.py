"""Artificial histories, most of them far from any training data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import HOUR_US, SECOND_US, bin_index
from model.engagement.history import History, Mode, Series
from model.engagement.video import Video
from model.forecast import Request

NOW_US: Final = 1_780_000_000 * SECOND_US
_DAY_US: Final = 24 * HOUR_US
Shape = Callable[[np.random.Generator, int, int], tuple[NDArray[np.int64], NDArray[np.int64]]]
"""From an age (us) and a count to the ages of engagements (us) and the number at each age."""


def _split(
    rng: np.random.Generator, ages: NDArray[np.int64], count: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    each = np.full(len(ages), count // len(ages), np.int64)
    each[: count % len(ages)] += 1
    return ages[each > 0], each[each > 0]


def _steady(rng: np.random.Generator, age: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return _split(rng, np.linspace(0, age, min(count, 240) + 2).astype(np.int64)[1:-1], count)


def _burst(rng: np.random.Generator, age: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    width = int(min(age, 10 ** rng.uniform(0, 3) * SECOND_US))
    return _split(rng, np.sort(age - rng.integers(0, width + 1, min(count, 50))), count)


def _silent(rng: np.random.Generator, age: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    until = max(age - 12 * HOUR_US, age // 20)
    return _split(rng, np.sort(rng.integers(0, until + 1, min(count, 50))), count)


def _rising(rng: np.random.Generator, age: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return _split(rng, (age * np.sort(rng.random(min(count, 200))) ** 0.2).astype(np.int64), count)


def _one_row(rng: np.random.Generator, age: int, count: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    return np.array([rng.integers(0, age + 1)]), np.array([count])


SHAPES: Final[dict[str, Shape]] = {
    "steady": _steady,
    "burst": _burst,
    "silent": _silent,
    "rising": _rising,
    "one row": _one_row,
}


def series(mode: Mode, ages: NDArray[np.int64], counts: NDArray[np.int64]) -> Series:
    """Engagements at ``ages`` (us) as the cells of one type."""
    bins, index = np.unique(bin_index(ages), return_inverse=True)
    summed = np.zeros(len(bins), np.int64)
    np.add.at(summed, index, counts)
    return Series(mode, bins, summed if mode == "events" else np.cumsum(summed))


def artificial(types: tuple[str, ...], n: int, seed: int) -> Iterator[tuple[str, Request]]:
    """Yield ``n`` requests for artificial videos, each with the name of its kind."""
    rng = np.random.default_rng(seed)
    names = [*SHAPES, "nothing"]
    for i in range(n):
        name = names[i % len(names)]
        mode: Mode = "counters" if i // len(names) % 2 else "events"
        age = int(np.exp(rng.uniform(np.log(5.0), np.log(90 * 86400.0))) * SECOND_US)
        count = int(10 ** rng.uniform(0, 4.5))
        extreme = i % 7
        if extreme == 5:
            count = int(10 ** rng.uniform(6, 15))
        if extreme == 6:
            age = int(rng.uniform(0.5, 19) * 365) * _DAY_US
        found = {}
        if name != "nothing":
            for k, kind in enumerate(types):
                if k == 0 or rng.random() < 0.5:
                    number = count if k == 0 else int(count * 10 ** rng.uniform(-4, 0.3))
                    if number:
                        found[kind] = series(mode, *SHAPES[name](rng, age, number))
        ahead = tuple(int(h * HOUR_US) for h in (1, 6, 24, 72, 168))
        yield f"{name}, {mode}", Request(Video(f"made-up-{i}", NOW_US - age), History(found), NOW_US, ahead)
