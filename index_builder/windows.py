"""Samples of a part of time, and who learns from which held-back video."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.dataset import DataSet
from index_builder.samples.network_inputs import creator_rows
from index_builder.samples.samples import Samples
from model.growth.curves import Curves


@dataclass(frozen=True, slots=True)
class Window:
    """N samples with their creator features (N, N_CREATOR) float32."""

    samples: Samples
    creator: NDArray[np.float32]

    @staticmethod
    def of(data: DataSet, known: Curves, samples: Samples, max_horizon_us: int, bank_videos: int) -> Window:
        """The samples with what their creators' earlier videos did, as ``known``."""
        return Window(samples, creator_rows(
            data.videos, data.published_us, known, samples.video, samples.now_us, max_horizon_us, bank_videos
        ))  # fmt: skip

    def take(self, rows: NDArray[Any]) -> Window:
        """The samples of ``rows``."""
        return Window(self.samples.take(rows), self.creator[rows])

    def __len__(self) -> int:
        return len(self.samples.video)


def deciding(data: DataSet, video: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A stable half of the held-back videos (N,), by a hash of their ids.

    They say when training stops, and how far intervals are stretched where the other half is scored.
    """
    chosen = {
        v: hashlib.sha256(data.videos[v].video_id.encode()).digest()[0] & 1 == 0 for v in np.unique(video).tolist()
    }
    return np.array([chosen[v] for v in video.tolist()], dtype=bool)
