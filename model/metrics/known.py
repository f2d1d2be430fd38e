"""What is known about a batch of requests. All metrics of a bundle are forecast from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.bank import PastVideo
from model.bank.neighbours import Ranked
from model.engagement.bins import SECOND_US
from model.features.tokens import Tokens
from model.forecast import Request


@dataclass(frozen=True, slots=True)
class Known:
    """What is known about N requests as of their ``now``. None of it depends on the metric.

    Attributes:
        requests: the requests.
        tokens: tokens of the requests.
        hidden: (N, d_model) float32, Mamba-Hawkes states as read at ``now``.
        content: (N, content_dim) float32, content vectors.
        components: (N, N_COMPONENTS) float32, principal components of the text. The width is 0 without trees.
        ranked: the neighbours of each request.
        past: the videos of each creator, by creator id.
        degraded: names of components that were not available.
    """

    requests: Sequence[Request]
    tokens: Tokens
    hidden: NDArray[np.float32]
    content: NDArray[np.float32]
    components: NDArray[np.float32]
    ranked: Sequence[Sequence[Ranked]]
    past: Mapping[str, Sequence[PastVideo]]
    degraded: Sequence[str]

    @property
    def ages_us(self) -> NDArray[np.int64]:
        """Ages at ``now`` in microseconds, (N,) int64."""
        return np.array([r.now_us - r.video.published_us for r in self.requests], dtype=np.int64)

    @property
    def now_s(self) -> NDArray[np.float64]:
        """Times of the forecasts in seconds since 1970 UTC, (N,) float64."""
        return np.array([r.now_us for r in self.requests], dtype=np.float64) / SECOND_US

    def take(self, rows: Sequence[int]) -> Known:
        """Return what is known about the requests ``rows``, in this order."""
        if list(rows) == list(range(len(self.requests))):
            return self
        at = np.array(rows, dtype=np.int64)
        return Known(
            [self.requests[i] for i in rows],
            self.tokens.take(at),
            self.hidden[at],
            self.content[at],
            self.components[at],
            [self.ranked[i] for i in rows],
            self.past,
            self.degraded,
        )
