"""The inputs of the forecast head: what is known about each request, as arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.bank import PastVideo
from model.bank.neighbours import N_NEIGHBOUR, Ranked, fill_features
from model.engagement.bins import SECOND_US
from model.engagement.signals import signal_cells_of
from model.features.creator import N_CREATOR, creator_features
from model.features.schema import Schema
from model.features.tokens import Tokens
from model.forecast import Request
from model.growth.curve_kernels import N_CURVE


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """Builds the inputs of one bundle's head.

    Attributes:
        schema: feature schema.
        neighbours: number K of neighbours.
        growth_us: (N_GROWTH,) int64 horizons at which the growth of other videos is read.
        pace: (N_CURVE,) float64 usual growth by age.
        base: (len(NOMINAL_AGES_US), N_GROWTH, N_BASE) float64 weights of the base forecast of growth.
        further: the metric whose curves of other videos are read, or None for the bundle's first metric.
    """

    schema: Schema
    neighbours: int
    growth_us: NDArray[np.int64]
    pace: NDArray[np.floating]
    base: NDArray[np.float64]
    further: str | None = None

    def build(
        self,
        requests: Sequence[Request],
        tokens: Tokens,
        hidden: NDArray[np.float32],
        content: NDArray[np.float32],
        summary: NDArray[np.float32],
        ages_us: NDArray[np.int64],
        values: NDArray[np.float64],
        ranked: Sequence[Sequence[Ranked]],
        past: Mapping[str, Sequence[PastVideo]],
    ) -> dict[str, NDArray[np.generic]]:
        """Return the inputs of the head's graph by name. Each input has N rows.

        Args:
            requests: N requests.
            tokens: the tokens of the requests.
            hidden: (N, d_model) Mamba-Hawkes states as read at ``now``.
            content: (N, content_dim) content vectors.
            summary: (N, n_summary + n_cascade) summaries, followed by the cascade features.
            ages_us: (N,) ages at ``now`` in microseconds.
            values: (N,) counts of the metric at ``now``.
            ranked: the neighbours of each request, at most K.
            past: the videos of each creator, by creator id.
        """
        videos = [request.video for request in requests]
        creator = np.zeros((len(requests), N_CREATOR), dtype=np.float32)
        for row, request, age_us in zip(creator, requests, ages_us.tolist(), strict=True):
            self._fill_creator(request, past.get(request.video.creator_id or "", ()), age_us, row)
        neighbours, mask = self._neighbours(requests, ages_us, values, ranked)
        inputs: dict[str, NDArray[np.generic]] = {
            "hidden": hidden,
            "read": tokens.read_features,
            "last": _last_features(tokens),
            "summary": summary,
            "content": content,
            "creator": creator,
            "static": self.schema.static(videos),
            "category": np.array([self.schema.category(v) for v in videos], dtype=np.int64),
            "language": np.array([self.schema.language(v) for v in videos], dtype=np.int64),
            "neighbours": neighbours,
            "mask": mask,
        }
        if self.schema.attributes:
            inputs["attributes"] = self.schema.attribute_features(videos)
        if self.schema.signals:
            histories = [request.history for request in requests]
            cells = [signal_cells_of(histories, signal.name) for signal in self.schema.signals]
            inputs["signals"] = self.schema.signal_features(cells, ages_us / SECOND_US)
        return inputs

    def _neighbours(
        self,
        requests: Sequence[Request],
        ages_us: NDArray[np.int64],
        values: NDArray[np.float64],
        ranked: Sequence[Sequence[Ranked]],
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Return the features of the neighbours (N, K, N_NEIGHBOUR), and a mask (N, K) that is 1 for each neighbour and 0 for padding."""
        n, k = len(requests), self.neighbours
        features, mask = np.zeros((n, k, N_NEIGHBOUR), np.float32), np.zeros((n, k), np.float32)
        for i, request in enumerate(requests):
            level = np.log2(1 + values[i])
            for j, item in enumerate(ranked[i]):
                candidate = item.candidate
                cosines = np.array([np.nan if s is None else s for s in (item.content, item.trajectory)])
                curve = candidate.curve_of(self.further)
                same_creator = candidate.creator_id is not None and candidate.creator_id == request.video.creator_id
                fill_features(
                    curve.ages_us,
                    curve.values,
                    len(curve.ages_us),
                    ages_us[i],
                    self.growth_us,
                    level,
                    cosines,
                    item.similarity,
                    same_creator,
                    request.video.published_us - candidate.published_us,
                    self.pace,
                    self.base,
                    features[i, j],
                )
                mask[i, j] = 1
        return features, mask

    def _fill_creator(self, request: Request, past: Sequence[PastVideo], age_us: int, out: NDArray[np.float32]) -> None:
        """Write the features of the creator into ``out``, an array of shape (N_CREATOR,).

        The features are computed from the creator's videos that were published before the requested video.
        """
        video = request.video
        past = [p for p in past if p.video_id != video.video_id and p.published_us < video.published_us]
        if not past:
            return
        ages, values = np.zeros((len(past), N_CURVE), np.int64), np.zeros((len(past), N_CURVE), np.int64)
        known = [p.curve_of(self.further) for p in past]
        for row, curve in enumerate(known):
            ages[row, : len(curve.ages_us)] = curve.ages_us
            values[row, : len(curve.values)] = curve.values
        creator_features(
            np.arange(len(past)),
            ages,
            values,
            np.array([len(curve.ages_us) for curve in known]),
            np.array([p.published_us for p in past]),
            request.now_us,
            age_us,
            self.growth_us,
            self.pace,
            self.base,
            out,
        )


def _last_features(tokens: Tokens) -> NDArray[np.float32]:
    """Return the features of each sequence's newest token, (S, F). The features are zero if there is no token."""
    last = np.zeros_like(tokens.read_features)
    some = tokens.offsets[1:] > tokens.offsets[:-1]
    last[some] = tokens.features[tokens.offsets[1:][some] - 1]
    return last
