"""Invents creators and videos: their content, and how much engagement they attract.

A video's appeal has two parts: one that its content shows (creator, topic, title words, duration), and one that is
hidden.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.datasets.file_format import TIMESTAMP
from index_builder.simulation.vocabulary import HOOKS, LANGUAGES, TOPICS
from model.engagement.bins import HOUR_US, SECOND_US

DAY_US: Final = 24 * HOUR_US
LIFE_DAYS: Final = (7.0, 14.0)
"""Minimum and maximum number of days after publication for which a video is watched."""
_WORDS: Final = 5
_HOOK_DRAW: Final = np.array([-0.6, -0.1, 0.2, 0.7])


@dataclass(frozen=True, slots=True)
class Content:
    """V invented videos before any engagement. All arrays have shape (V,).

    ``published_us`` and ``ends_us`` int64: times between which a video is watched.
    ``shown`` float64: the part of the appeal that content and creator show.
    ``appeal`` float64: the whole appeal, including the hidden part.
    ``columns``: the columns of videos.parquet.
    """

    published_us: NDArray[np.int64]
    ends_us: NDArray[np.int64]
    shown: NDArray[np.float64]
    appeal: NDArray[np.float64]
    columns: dict[str, pa.Array]


def invent(rng: np.random.Generator, n: int, start_us: int, span_us: int, end_us: int) -> Content:
    """Invent ``n`` videos that are published over ``span_us`` from ``start_us``. No video is watched after ``end_us``."""
    published = np.sort(start_us + (rng.random(n) * span_us).astype(np.int64) // SECOND_US * SECOND_US)
    life = (rng.uniform(*LIFE_DAYS, n) * DAY_US).astype(np.int64)

    creators = max(4, n // 10)
    quality = rng.normal(0, 1, creators)
    followers = np.exp(7 + 1.3 * quality + rng.normal(0, 1.0, creators)).astype(np.int64)
    speaks = rng.choice(len(LANGUAGES), creators, p=[0.35, 0.15, 0.1, 0.2, 0.1, 0.1])
    covers = rng.integers(0, len(TOPICS), (creators, 2))
    activity = np.minimum(rng.pareto(1.5, creators), 5) + 0.3
    creator = rng.choice(creators, n, p=activity / activity.sum())

    topics = list(TOPICS)
    topic_draw = np.linspace(-1, 1, len(topics))[rng.permutation(len(topics))]
    topic = covers[creator, rng.integers(0, 2, n)]
    words = rng.integers(0, _WORDS, (n, 2))
    hook = rng.integers(-4, len(_HOOK_DRAW), n)
    duration = np.round(np.exp(rng.normal(3.4, 0.7, n)), 1).clip(3, 180)

    shown = 0.62 * quality[creator] + 0.5 * topic_draw[topic] + 0.22 * (words.sum(axis=1) - (_WORDS - 1))
    shown += np.where(hook >= 0, _HOOK_DRAW[hook], 0.0)
    shown -= 0.35 * np.abs(np.log(duration / 25))
    appeal = shown + rng.normal(0, 0.75, n)

    titles, tags = [], []
    for creator_index, topic_index, (one, two), hook_index in zip(creator, topic, words, hook, strict=True):
        language = LANGUAGES[speaks[creator_index]]
        vocabulary = TOPICS[topics[topic_index]][language]
        parts = [HOOKS[language][hook_index]] if hook_index >= 0 else []
        titles.append(" ".join([*parts, vocabulary[one], *([vocabulary[two]] if two != one else [])]))
        tags.append(f"{topics[topic_index].lower()},{vocabulary[one]}")
    columns = {
        "video_id": pa.array([f"sim{i:07d}" for i in range(n)]),
        "published_at": timestamps(published),
        "title": pa.array(titles),
        "tags": pa.array(tags),
        "category": pa.array([topics[i] for i in topic]),
        "language": pa.array([LANGUAGES[i] for i in speaks[creator]]),
        "duration_s": pa.array(duration),
        "creator_id": pa.array([f"creator{i:06d}" for i in creator]),
        "creator_name": pa.array([f"Invented Creator {i}" for i in creator]),
        "creator_followers": pa.array(followers[creator]),
    }
    return Content(published, np.minimum(published + life, end_us), shown, appeal, columns)


def timestamps(time_us: NDArray[np.int64]) -> pa.Array:
    """Convert int64 microseconds UTC to an Arrow timestamp column."""
    return pa.array(time_us).cast(TIMESTAMP)
