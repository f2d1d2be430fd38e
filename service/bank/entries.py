"""Makes bank entries from stored videos."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from model.bank import BankVideo
from model.engagement.rows import rows_of
from model.forecaster import Forecaster
from model.indexing import ObservedVideos, entries
from service.store.snapshot import Snapshot


def bank_entries(
    forecaster: Forecaster, snapshots: Sequence[Snapshot], content: NDArray[np.float32], now_us: int
) -> list[BankVideo]:
    """Return the bank entries of videos that have rows. Entries are made from data up to ``now_us``.

    ``content``: content vectors of the n videos, a float32 array of shape (n, Dc). Each vector has Dc dimensions.
    """
    types = forecaster.manifest.types
    built: list[BankVideo] = []
    # Handle one video at a time, because some videos are fed by events and others by counters.
    for snapshot, vector in zip(snapshots, content, strict=True):
        video, newest_us = snapshot.video, snapshot.newest_us or snapshot.video.published_us
        rows = rows_of([snapshot.history], [video.published_us], [newest_us], types)
        past = ObservedVideos([video], np.array([video.published_us]), types, *rows)
        for batch in entries(forecaster, past, now_us, content=lambda _, vector=vector: vector[None]):  # type: ignore[misc]
            built += batch
    return built
