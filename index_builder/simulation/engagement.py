"""Simulates the engagement of videos: a marked, mutually exciting Hawkes process with power-law memory.

The process is drawn in cluster form, one generation of all videos at a time:

    immigrants  Events without a parent. Their number is Poisson and grows with the video's appeal.
                Their rate falls as a power of the video's age.
    children    Events that are caused by an event of type i. Their number is Poisson with mean
                branching * hour(t) * mark(reach) * OFFSPRING[i].sum(). Their types follow OFFSPRING[i].
                Their delays follow the Omori kernel (t + c) ** -(1 + theta).
    hour(t)     The audience's activity by hour of day, with mean 1.

Appeal raises the number of immigrants and the branching ratio. The branching ratio is less than 1, so the number of
events is finite. The number of events per video is heavy-tailed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.simulation.videos import Content
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.types import ENGAGEMENT_TYPES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

MAX_EVENTS: Final = 10_000
"""Maximum number of events of one video."""
_OFFSPRING: Final = np.array(
    [
        [0.55, 0.10, 0.02, 0.02],
        [0.70, 0.15, 0.04, 0.04],
        [0.90, 0.20, 0.25, 0.08],
        [2.60, 0.35, 0.10, 0.35],
    ]
)
"""Mean number of children by type of the parent (row) and type of the child (column), up to a factor.

``_OFFSPRING_UNIT`` is this matrix divided by its largest eigenvalue. The branching ratio multiplies
``_OFFSPRING_UNIT``.
"""
_OFFSPRING_UNIT: Final = _OFFSPRING / np.abs(np.linalg.eigvals(_OFFSPRING)).max()
_IMMIGRANT_TYPES: Final = np.array([0.86, 0.09, 0.02, 0.03])
_OMORI_C_S: Final = 240.0
_OMORI_THETA: Final = 0.42
_RISE_C_S: Final = 1800.0
_RISE_THETA: Final = 0.35
_MARK_POWER: Final = 0.35
_HOURS: Final = (
    1 + 0.55 * np.cos((np.arange(24) - 19) * 2 * np.pi / 24) + 0.2 * np.cos((np.arange(24) - 13) * 4 * np.pi / 24)
)
_HOURS_UNIT: Final = _HOURS / _HOURS.mean()


@dataclass(frozen=True, slots=True)
class Engagement:
    """Events sorted by time. All arrays are int64 arrays of shape (n,).

    ``video``: index of the video.
    ``time_us``: time in microseconds since 1970 UTC.
    ``type``: index into ENGAGEMENT_TYPES.
    ``reach``: reach of the actor.
    """

    video: Ints
    time_us: Ints
    type: Ints
    reach: Ints


def engage(rng: np.random.Generator, content: Content) -> Engagement:
    """Draw the events of every video."""
    branching = 0.30 + 0.60 / (1 + np.exp(-0.8 * content.appeal))
    expected = np.exp(3.1 + 0.85 * content.appeal)
    parent = np.repeat(np.arange(len(branching)), rng.poisson(expected * _HOURS_UNIT.max()))
    age_us = _power_law_us(rng, len(parent), _RISE_C_S, _RISE_THETA)
    at = content.published_us[parent] + age_us
    keep = (at < content.ends_us[parent]) & _awake(rng, at)
    video, at = parent[keep], at[keep]
    kind = rng.choice(len(ENGAGEMENT_TYPES), len(video), p=_IMMIGRANT_TYPES)
    capacity = np.full(len(branching), MAX_EVENTS)
    generations: list[tuple[Ints, Ints, Ints, Ints]] = []
    while len(video):
        order = np.argsort(video, kind="stable")
        rank = np.arange(len(video)) - np.searchsorted(video[order], video[order])
        kept = np.sort(order[rank < capacity[video[order]]])
        video, at, kind = video[kept], at[kept], kind[kept]
        capacity -= np.bincount(video, minlength=len(capacity))
        reach, mark = _marks(rng, len(video))
        generations.append((video, at, kind, reach))
        mean = branching[video] * mark * _OFFSPRING_UNIT.sum(axis=1)[kind] * _HOURS_UNIT.max()
        parent = np.repeat(np.arange(len(video)), rng.poisson(mean))
        born = at[parent] + _power_law_us(rng, len(parent), _OMORI_C_S, _OMORI_THETA)
        keep = (born < content.ends_us[video[parent]]) & _awake(rng, born)
        parent = parent[keep]
        kind = _child_types(rng, kind[parent])
        video, at = video[parent], born[keep]
    every = (
        [np.concatenate(arrays) for arrays in zip(*generations, strict=True)]
        if generations
        else [np.zeros(0, np.int64)] * 4
    )
    order = np.lexsort((every[2], every[0], every[1]))
    return Engagement(*(array[order] for array in every))


def _power_law_us(rng: np.random.Generator, n: int, c_s: float, theta: float) -> Ints:
    """Draw delays (n,) int64 in microseconds, below 400 days. A delay exceeds t with probability (1 + t / c) ** -theta."""
    delay_s = c_s * ((1 - rng.random(n)) ** (-1 / theta) - 1)
    return (np.minimum(delay_s, 400 * 86400.0) * SECOND_US).astype(np.int64)


def _awake(rng: np.random.Generator, at_us: Ints) -> NDArray[np.bool_]:
    """Draw flags (n,) bool of the events that are kept, depending on the hour of day.

    On average, the fraction 1 / _HOURS_UNIT.max() is kept.
    """
    hour = at_us // HOUR_US % 24
    return np.asarray(rng.random(len(at_us)) * _HOURS_UNIT.max() < _HOURS_UNIT[hour])


def _marks(rng: np.random.Generator, n: int) -> tuple[Ints, Floats]:
    """Draw the reach (n,) int64 of each actor, and a factor for the number of children.

    Reach follows a Pareto distribution of index 1.2. The factor has mean 1.
    """
    share = np.minimum((1 - rng.random(n)) ** (-1 / 1.2), 1e5)
    return (30 * share).astype(np.int64), share**_MARK_POWER * (1 - _MARK_POWER / 1.2)


def _child_types(rng: np.random.Generator, parent_kind: Ints) -> Ints:
    chances = np.cumsum(_OFFSPRING / _OFFSPRING.sum(axis=1, keepdims=True), axis=1)[parent_kind]
    drawn = (rng.random((len(parent_kind), 1)) > chances).sum(axis=1)
    return np.asarray(np.minimum(drawn, len(ENGAGEMENT_TYPES) - 1), np.int64)
