"""The plan of one training run: data, settings, times and the values that are derived from them."""

from __future__ import annotations

import copy
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import numpy as np
import torch

from index_builder.datasets.attributes.choice import MIN_VIDEOS, choose_attributes
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.observed import Observed
from index_builder.datasets.signals.choice import choose_signals
from index_builder.progress import progress
from index_builder.training.config import TrainConfig
from index_builder.training.distributed import ProcessGroup
from model.engagement.bins import HOUR_US
from model.features.schema import Schema
from model.features.tokens import n_features
from model.mhp.shape import MHPShape
from model.network import M3TR

NGRAM_BUCKETS: Final = 1 << 15


class Plan:
    """The plan of one training run.

    ``few`` is True if the data set has few videos. Videos published up to ``split_us`` are for training, and later
    videos are the holdout. Only rows up to ``until_us`` are read. ``choices`` and ``signals`` say which
    attributes and signals the model reads. ``observed`` is the data set prepared for the metric that is trained, and
    ``further`` is the data set prepared for each metric after the first.
    """

    def __init__(
        self,
        observed: Observed,
        config: TrainConfig,
        as_of_us: int,
        process_group: ProcessGroup,
        seed: int,
        further: Sequence[Observed] = (),
    ) -> None:
        self.further, self._suffix = tuple(further), ""
        self.observed, self.config, self.as_of_us, self.process_group, self.seed = (
            observed,
            config,
            as_of_us,
            process_group,
            seed,
        )
        self.data: DataSet = observed.data
        self.few = len(self.data.videos) < config.few_videos
        self.until_us = self.data.watched_until_us(as_of_us)
        published = self.data.published_us
        self.split_us = int(np.quantile(published, 1 - config.validation_share, method="lower"))
        span = self.until_us - int(published[0])
        self.max_horizon_us = int(min(config.max_horizon_h * HOUR_US, max(span // 2, HOUR_US)))
        self.max_age_us = int(config.max_age_h * HOUR_US)
        given = [video.attributes for video in self.data.videos]
        of_signals = self.data.signals
        on_videos = [name for name in config.exclude if name not in of_signals]
        self.choices = choose_attributes(given, only=config.attributes, exclude=on_videos)
        self.signals = choose_signals(of_signals, only=config.signals, exclude=config.exclude)
        self.schema = Schema(
            self.data.types,
            observed.name,
            self.max_horizon_us,
            self.max_age_us,
            _names(v.category for v in self.data.videos),
            _names(v.language for v in self.data.videos),
            tuple(choice.attribute for choice in self.choices if choice.attribute is not None),
            tuple(choice.signal for choice in self.signals if choice.signal is not None),
            tuple(each.name for each in further),
        )
        self.shape = MHPShape(n_features(len(self.data.types)), len(self.data.types), config.d_model, config.n_layers)

    def of(self, observed: Observed) -> Plan:
        """Return the same plan for training a further metric, which ``observed`` is prepared for."""
        out = copy.copy(self)
        out.observed, out._suffix = observed, f", {observed.name}"
        return out

    def network(self, config: TrainConfig, *, cascade: bool) -> M3TR:
        """Create the untrained network. ``cascade`` says whether it reads a cascade.

        The network is the same on every process. Only the random numbers of dropout differ between processes.
        """
        group = self.process_group
        torch.manual_seed(self.seed)
        net = M3TR(
            self.shape,
            len(self.schema.categories),
            len(self.schema.languages),
            NGRAM_BUCKETS,
            text_dropout=config.text_dropout,
            head_dropout=config.head_dropout,
            parts=config.parts,
            cascade=cascade,
            small_head=self.few,
            attributes=self.schema.attribute_layout,
            n_signals=len(self.schema.signals),
        )
        if group.size > 1:
            torch.manual_seed(self.seed * group.size + group.rank)
        return net

    @contextmanager
    def step(self, name: str, total: float | None = None) -> Iterator[Callable[..., None]]:
        """Show the progress of a step. Yield a function that advances the progress. Only the first process shows progress."""
        if not self.process_group.is_first:
            yield lambda *_, **__: None
            return
        start = time.monotonic()
        with progress(name + self._suffix, total) as bar:
            yield bar.advance
            bar.advance(0, note=f"done in {time.monotonic() - start:.0f} s")


def _names(values: Iterator[str | None]) -> tuple[str, ...]:
    counted = Counter(value for value in values if value)
    return tuple(sorted(name for name, n in counted.items() if n >= MIN_VIDEOS))
