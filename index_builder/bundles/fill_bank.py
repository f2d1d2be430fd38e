"""Fills a bank with the vectors and curves of past videos, as observed up to a given time."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from model.bank import Bank
from model.forecaster import Forecaster
from model.indexing import ObservedVideos, entries


def bank_members(observed: Observed, as_of_us: int, limit: int) -> NDArray[np.int64]:
    """Return the indices of the newest ``limit`` videos published up to ``as_of_us``, oldest first."""
    end = int(np.searchsorted(observed.data.published_us, as_of_us, side="right"))
    return np.arange(max(0, end - limit), end)


def fill_bank(
    bank: Bank,
    forecaster: Forecaster,
    observed: Observed,
    as_of_us: int,
    members: NDArray[np.int64],
    *,
    sentence: NDArray[np.float32] | None = None,
    advance: Callable[[int], None] | None = None,
) -> None:
    """Add an entry to ``bank`` for each of the videos ``members`` (n,), then optimise the bank.

    ``members`` holds sorted indices of the videos of ``observed``. ``advance`` is called after each batch with the number
    of videos just added. Pass ``sentence`` (V, 384) to avoid encoding the texts again.
    """
    data = observed.data
    past = ObservedVideos(data.videos, data.published_us, data.types, observed.events, observed.counters)

    def content(batch: NDArray[np.int64]) -> NDArray[np.float32]:
        return forecaster.content([data.videos[v] for v in batch], None if sentence is None else sentence[batch])

    for batch in entries(forecaster, past, data.watched_until_us(as_of_us), content=content, members=members):
        bank.upsert(batch)
        if advance:
            advance(len(batch))
    bank.optimize()
