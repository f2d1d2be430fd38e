"""Finds the outcome of a forecast, which is the video's count at the target time, read from the video's histogram.

The count is known only at certain times. Between two of these times, the count is interpolated linearly. The outcome is accurate enough if
the nearer of these two times is at most a tenth of the horizon (``NEAR``) from the target time. Otherwise the forecast has no outcome.

events    the count is known at the edges of bins, at the forecast's time, and now; without a row, the count does not change
counters  the count is known at the ends of bins that have rows, and at the newest row's time
"""

from __future__ import annotations

from typing import Final, Literal

import numpy as np

from model.engagement.bins import EDGES_US, bin_end_us, bin_index
from model.engagement.history import Series
from service.quality.label import Label, metric_kinds
from service.store.snapshot import Snapshot

NEAR: Final = 0.1

Missing = Literal["later", "never"]
"""``later``: there is no outcome yet. ``never``: there will never be one."""


def outcome(label: Label, snapshot: Snapshot, seen_us: int, silence: bool) -> float | Missing:
    """Return the metric's count at the label's target time.

    Args:
        label: the forecast.
        snapshot: the video's present data.
        seen_us: time up to which the store has all rows. This time is at or after the target time.
        silence: whether a video without rows has the outcome 0 (as with events). If False, the video's outcome is unknown.
    """
    history, published_us = snapshot.history, label.published_us
    observed = [(kind, history.series[kind]) for kind in metric_kinds(label.metric, history.series)]
    if not observed:
        return 0.0 if silence else "never"
    newest_us = published_us if snapshot.newest_us is None else snapshot.newest_us
    total = 0.0
    for kind, series in observed:
        if series.mode == "events":
            found = _of_events(series, label, label.counts.get(kind, 0), seen_us - published_us)
        else:
            found = _of_counters(series, label, newest_us - published_us)
        if isinstance(found, str):
            return found
        total += found
    return total


def _of_events(series: Series, label: Label, count_then: int, seen_age: int) -> float | Missing:
    then, at = label.now_us - label.published_us, label.target_us - label.published_us
    index = int(bin_index(at))
    here = int(np.searchsorted(series.bins, index))
    before = int(series.values[:here].sum())
    if here == len(series.bins) or series.bins[here] != index:
        return float(before)
    after = before + int(series.values[here])
    left, right = int(EDGES_US[index]), min(int(bin_end_us(index)), seen_age)
    if then > left:
        left, before = then, min(max(before, count_then), after)
    if min(at - left, right - at) > NEAR * label.horizon_us:
        return "never"
    return _between(left, before, right, after, at)


def _of_counters(series: Series, label: Label, newest_age: int) -> float | Missing:
    at, near = label.target_us - label.published_us, NEAR * label.horizon_us
    ends, starts, values = bin_end_us(series.bins), EDGES_US[series.bins].copy(), series.cumulative()
    # The newest row's time is known to the microsecond, and the row has the largest value of its bin.
    exact = (starts <= newest_age) & (newest_age < ends)
    times = np.where(exact, newest_age, ends)
    starts[exact] = newest_age
    right = int(np.searchsorted(times, at, side="right"))
    left = right - 1
    if right == len(times):
        return float(values[left]) if left >= 0 and at - starts[left] <= near else "later"
    if times[right] - at > near and (left < 0 or at - starts[left] > near):
        return "never"
    if left < 0:
        return float(values[right])
    return _between(int(times[left]), int(values[left]), int(times[right]), int(values[right]), at)


def _between(left: int, low: int, right: int, high: int, at: int) -> float:
    return float(high) if right <= left else low + (high - low) * (at - left) / (right - left)
