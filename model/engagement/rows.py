"""Engagement rows of many videos as flat arrays, and the histogram cells and cumulative counts known from them at a given time.

All functions are point-in-time: they take an explicit ``now`` and only read rows up to ``now``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import EDGES_US, bin_end_us
from model.engagement.cells import COUNTER_MODE, EVENT_MODE, Cells
from model.engagement.history import History, Mode


@dataclass(frozen=True, slots=True)
class VideoRows:
    """Engagement rows of one mode, sorted by video.

    ``mode`` is EVENT_MODE or COUNTER_MODE. ``offsets`` (V + 1,) int64 holds the start of each video's rows.
    """

    mode: int
    offsets: NDArray[np.int64]
    time_us: NDArray[np.int64]
    type: NDArray[np.int64]
    value: NDArray[np.int64]
    reach: NDArray[np.int64]


@numba.njit(cache=True, nogil=True)
def _rows_until(offsets, time_us, video, now_us, out):  # type: ignore[no-untyped-def]
    for i in range(len(video)):
        lo, hi = offsets[video[i]], offsets[video[i] + 1]
        while lo < hi:
            middle = (lo + hi) // 2
            if time_us[middle] <= now_us[i]:
                lo = middle + 1
            else:
                hi = middle
        out[i] = lo


def rows_until(source: VideoRows, video: NDArray[np.int64], now_us: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return, for each of n pairs (video, now), the index just after the video's last row with time <= now: (n,) int64."""
    out = np.zeros(len(video), dtype=np.int64)
    _rows_until(source.offsets, source.time_us, video, now_us, out)
    return out


@numba.njit(cache=True, nogil=True)
def _cells(  # type: ignore[no-untyped-def]
    edges,
    starts_e,
    ends_e,
    time_e,
    type_e,
    value_e,
    reach_e,
    starts_c,
    ends_c,
    time_c,
    type_c,
    value_c,
    published_us,
    n_types,
    offsets,
    bins,
    types,
    values,
    modes,
    reach,
):
    at = 0
    value = np.zeros((2, n_types), dtype=np.int64)
    touched = np.zeros((2, n_types), dtype=np.bool_)
    last = len(edges) - 2
    for s in range(len(published_us)):
        i, j = starts_e[s], starts_c[s]
        while i < ends_e[s] or j < ends_c[s]:
            bin_e, bin_c = last + 1, last + 1
            if i < ends_e[s]:
                bin_e = min(np.searchsorted(edges, time_e[i] - published_us[s], side="right") - 1, last)
            if j < ends_c[s]:
                bin_c = min(np.searchsorted(edges, time_c[j] - published_us[s], side="right") - 1, last)
            index = min(bin_e, bin_c)
            stop = published_us[s] + edges[index + 1] if index < last else np.iinfo(np.int64).max
            value[:] = 0
            touched[:] = False
            total_reach = 0
            while i < ends_e[s] and time_e[i] < stop:
                value[0, type_e[i]] += value_e[i]
                touched[0, type_e[i]] = True
                total_reach += reach_e[i]
                i += 1
            while j < ends_c[s] and time_c[j] < stop:
                value[1, type_c[j]] = max(value[1, type_c[j]], value_c[j])
                touched[1, type_c[j]] = True
                j += 1
            for k in range(n_types):
                for mode in range(2):
                    if touched[mode, k]:
                        bins[at] = index
                        types[at] = k
                        values[at] = value[mode, k]
                        modes[at] = mode + 1
                        reach[at] = total_reach
                        at += 1
        offsets[s + 1] = at
    return at


def cells_at(
    events: VideoRows,
    counters: VideoRows,
    video: NDArray[np.int64],
    now_us: NDArray[np.int64],
    published_us: NDArray[np.int64],
    n_types: int,
) -> Cells:
    """Return the histogram cells of every pair (video, now), computed from the rows up to and including ``now``.

    ``published_us`` has one entry per pair.
    """
    ends_e, ends_c = rows_until(events, video, now_us), rows_until(counters, video, now_us)
    starts_e, starts_c = events.offsets[video], counters.offsets[video]
    size = int((ends_e - starts_e).sum() + (ends_c - starts_c).sum())
    offsets = np.zeros(len(video) + 1, dtype=np.int64)
    bins, types, values, modes, reach = (np.zeros(size, dtype=np.int64) for _ in range(5))
    n = _cells(
        EDGES_US,
        starts_e,
        ends_e,
        events.time_us,
        events.type,
        events.value,
        events.reach,
        starts_c,
        ends_c,
        counters.time_us,
        counters.type,
        counters.value,
        published_us,
        n_types,
        offsets,
        bins,
        types,
        values,
        modes,
        reach,
    )
    return Cells(offsets, bins[:n], types[:n], values[:n], modes[:n], reach[:n])


@numba.njit(cache=True, nogil=True)
def _running_totals(offsets, type_, value, counted, is_counter, out):  # type: ignore[no-untyped-def]
    current = np.zeros(len(counted), dtype=np.int64)
    for v in range(len(offsets) - 1):
        current[:] = 0
        total = 0
        for i in range(offsets[v], offsets[v + 1]):
            k = type_[i]
            if counted[k]:
                grown = max(current[k], value[i]) if is_counter else current[k] + value[i]
                total += grown - current[k]
                current[k] = grown
            out[i] = total


def running_totals(source: VideoRows, metric: tuple[int, ...], n_types: int) -> NDArray[np.int64]:
    """Return the metric's cumulative count just after each row of ``source``, (rows,) int64."""
    counted = np.zeros(n_types, dtype=np.bool_)
    counted[list(metric)] = True
    out = np.zeros(len(source.time_us), dtype=np.int64)
    _running_totals(source.offsets, source.type, source.value, counted, source.mode == COUNTER_MODE, out)
    return out


def metric_rows(
    events: VideoRows, counters: VideoRows, metric: tuple[int, ...], n_types: int
) -> tuple[VideoRows, NDArray[np.int64], bool]:
    """Choose the rows from which the metric is read: the counters if there are any of the metric's types, and otherwise the events.

    Returns:
        The rows, the metric's count after each row, and whether the rows are events.
    """
    from_counters = bool(np.isin(counters.type, metric).any())
    source = counters if from_counters else events
    return source, running_totals(source, metric, n_types), not from_counters


def bin_times_us(bins: NDArray[np.int64], published_us: int, newest_us: int) -> NDArray[np.int64]:
    """Return the time that represents each bin, int64 microseconds.

    The end of a bin represents it, because all rows of the bin are known then. If the newest row is earlier, the time
    of the newest row is used instead. So no returned time is later than the newest observation.
    """
    return np.minimum(published_us + bin_end_us(bins) - 1, newest_us)


def flat_cells(
    history: History, mode: Mode, types: Sequence[str]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return a history's cells of one mode.

    The cells are sorted by (bin, type). Types that are not in ``types`` are left out. The first cell of a bin holds
    the bin's reach, and the other cells hold 0.

    Returns:
        Four int64 arrays of shape (n,): bins, types (indices into ``types``), values and reach.
    """
    index = {kind: i for i, kind in enumerate(types)}
    series = [(index[kind], s) for kind, s in history.series.items() if s.mode == mode and kind in index]
    if not series:
        none = np.zeros(0, np.int64)
        return none, none, none, none
    bins = np.concatenate([s.bins for _, s in series])
    kinds = np.concatenate([np.full(len(s.bins), kind, np.int64) for kind, s in series])
    order = np.lexsort((kinds, bins))
    bins, kinds, values = bins[order], kinds[order], np.concatenate([s.values for _, s in series])[order]
    reach = np.zeros(len(bins), np.int64)
    if mode == "events" and history.reach:
        first = np.flatnonzero(np.diff(bins, prepend=-1))
        reach[first] = [history.reach.get(b, 0) for b in bins[first].tolist()]
    return bins, kinds, values, reach


def rows_of(
    histories: Sequence[History], published_us: Sequence[int], newest_us: Sequence[int], types: Sequence[str]
) -> tuple[VideoRows, VideoRows]:
    """Return the events and the counters of V videos, computed from their histograms.

    Each cell becomes one row, at the ``bin_times_us`` of its bin. ``newest_us`` (V,) is the time of each video's
    newest row.
    """
    modes: tuple[tuple[int, Mode], ...] = ((EVENT_MODE, "events"), (COUNTER_MODE, "counters"))
    found = []
    for number, mode in modes:
        offsets = np.zeros(len(histories) + 1, np.int64)
        columns: list[NDArray[np.int64]] = [np.zeros((4, 0), np.int64)]
        for v, history in enumerate(histories):
            bins, kinds, values, reach = flat_cells(history, mode, types)
            columns.append(np.stack([bin_times_us(bins, published_us[v], newest_us[v]), kinds, values, reach]))
            offsets[v + 1] = offsets[v] + len(bins)
        time_us, kind, value, reached = np.concatenate(columns, axis=1)
        found.append(VideoRows(number, offsets, time_us, kind, value, reached))
    return found[0], found[1]
