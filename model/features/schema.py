"""The feature schema of a bundle: what is needed to turn a video and its history into network inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import SECOND_US
from model.engagement.signals import SignalCells
from model.engagement.video import Video
from model.features.attributes import Attribute, AttributeLayout, attribute_features
from model.features.signals import Signal, signal_features

N_STATIC: Final = 9
"""Number of static features: duration and followers with their masks, whether there is text, and sine and cosine of
the hour and of the weekday of publication."""
_DAY_S: Final = 86_400.0
_WEEK_S: Final = 7 * _DAY_S


@dataclass(frozen=True, slots=True)
class Schema:
    """What a bundle knows about its inputs.

    Attributes:
        types: engagement types, in the order of the token features.
        metric: the first metric that is forecast. Trajectories are those of this metric.
        max_horizon_us: longest horizon in the training data, in microseconds.
        max_age_us: highest age in the training data, in microseconds.
        categories: known categories, numbered from 1. The number 0 means missing or unknown.
        languages: known languages, numbered in the same way.
        attributes: attributes that are read.
        signals: signals that are read.
        further: the other metrics that are forecast.
        attribute_layout: where each attribute is in the features of a video.
    """

    types: tuple[str, ...]
    metric: str
    max_horizon_us: int
    max_age_us: int
    categories: tuple[str, ...] = ()
    languages: tuple[str, ...] = ()
    attributes: tuple[Attribute, ...] = ()
    signals: tuple[Signal, ...] = ()
    further: tuple[str, ...] = ()
    attribute_layout: AttributeLayout = field(init=False, repr=False, compare=False)
    _category: dict[str, int] = field(init=False, repr=False, default_factory=dict)
    _language: dict[str, int] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "attribute_layout", AttributeLayout.of(self.attributes))
        self._category.update({name: i + 1 for i, name in enumerate(self.categories)})
        self._language.update({name: i + 1 for i, name in enumerate(self.languages)})

    @property
    def metrics(self) -> tuple[str, ...]:
        """All metrics that are forecast, the first metric first."""
        return (self.metric, *self.further)

    def category(self, video: Video) -> int:
        """Return the index of the video's category. The index is 0 if the category is missing or unknown."""
        return self._category.get(video.category or "", 0)

    def language(self, video: Video) -> int:
        """Return the index of the video's language. The index is 0 if the language is missing or unknown.

        An unknown regional variant ("en-GB") falls back to its base language.
        """
        name = video.language or ""
        return self._language.get(name) or self._language.get(name.split("-")[0], 0)

    def attribute_features(self, videos: Sequence[Video]) -> NDArray[np.float32]:
        """Return the features of the attributes, (N, attribute_layout.width) float32."""
        return attribute_features(self.attributes, self.attribute_layout, videos)

    def signal_features(self, cells: Sequence[SignalCells], age_s: NDArray[np.float64]) -> NDArray[np.float32]:
        """Return the features of the signals, (S, len(signals) * N_SIGNAL) float32.

        ``cells`` holds the readings of each signal in S sequences, which are read at the ages ``age_s`` (S,) in seconds.
        """
        none = np.zeros((len(age_s), 0), np.float32)
        found = [signal_features(signal, part, age_s) for signal, part in zip(self.signals, cells, strict=True)]
        return np.concatenate([none, *found], axis=1)

    def static(self, videos: Sequence[Video]) -> NDArray[np.float32]:
        """Return the static features, (N, N_STATIC) float32."""
        out = np.zeros((len(videos), N_STATIC), dtype=np.float32)
        for row, video in zip(out, videos, strict=True):
            if video.duration_s is not None and video.duration_s >= 0:
                row[0], row[1] = np.log1p(video.duration_s) / 8, 1
            if video.creator_followers is not None and video.creator_followers >= 0:
                row[2], row[3] = np.log1p(video.creator_followers) / 16, 1
            row[4] = float(bool(video.title or video.tags or video.description))
            seconds = video.published_us / SECOND_US
            hour, week = 2 * np.pi * (seconds % _DAY_S) / _DAY_S, 2 * np.pi * (seconds % _WEEK_S) / _WEEK_S
            row[5:] = np.sin(hour), np.cos(hour), np.sin(week), np.cos(week)
        return out
