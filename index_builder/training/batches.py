"""Forms batches of videos of similar length.

The tokens of a video are scanned once. Each sample of the video uses the scan's state at the sample's cut point.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index_builder.samples.samples import Samples

_MAX_VIDEOS = 400


@dataclass(frozen=True, slots=True)
class Batch:
    """B videos with up to C cut points each.

    ``videos`` (B,) int64: index of each video.
    ``rows`` (B, C) int64: index of the sample at each cut point.
    ``real`` (B, C) bool: True for cut points that are not padding.
    ``length``: number of tokens that are scanned.
    """

    videos: NDArray[np.int64]
    rows: NDArray[np.int64]
    real: NDArray[np.bool_]
    length: int

    def share(self, rank: int, size: int) -> Batch:
        """Return the share of training process ``rank`` of ``size``: every ``size``-th video, beginning with number ``rank``.

        The share is empty if there are ``rank`` videos or fewer.
        """
        if size == 1:
            return self
        return Batch(self.videos[rank::size], self.rows[rank::size], self.real[rank::size], self.length)


def batches(
    samples: Samples,
    max_tokens: int,
    *,
    scanned: NDArray[np.int64] | None = None,
    rng: np.random.Generator | None = None,
    max_cuts: int = 8,
) -> Iterator[Batch]:
    """Yield batches that contain every video of ``samples`` once.

    The tokens before the newest cut point of each video are scanned. With ``scanned`` (V,), at least the first
    ``scanned`` tokens of each video are scanned.

    With ``rng``, the batches are shuffled and contain up to ``max_cuts`` samples per video, drawn at random. Without
    ``rng``, the batches are in order of length and contain all samples.
    """
    videos, first = np.unique(samples.video, return_index=True)
    last = np.append(first[1:], len(samples.video))
    length = np.maximum.reduceat(samples.position, first) if len(first) else first
    if scanned is not None:
        length = np.maximum(length, scanned[videos])
    order = np.argsort(length + (rng.random(len(length)) * 4 if rng else 0), kind="stable")
    groups: list[list[int]] = []
    longest = 0
    for i in order.tolist():
        longest = max(longest, int(length[i]), 4)
        if not groups or longest * (len(groups[-1]) + 1) > max_tokens or len(groups[-1]) == _MAX_VIDEOS:
            groups.append([])
            longest = max(int(length[i]), 4)
        groups[-1].append(i)
    if rng:
        rng.shuffle(groups)
    for group in groups:
        rows = [np.arange(first[i], last[i]) for i in group]
        if rng:
            rows = [np.sort(rng.choice(r, max_cuts, replace=False)) if len(r) > max_cuts else r for r in rows]
        width = max(len(r) for r in rows)
        padded, real = np.zeros((len(group), width), np.int64), np.zeros((len(group), width), np.bool_)
        for j, r in enumerate(rows):
            padded[j, : len(r)] = r
            real[j, : len(r)] = True
        yield Batch(videos[group], padded, real, max(int(length[group].max()), 1))
