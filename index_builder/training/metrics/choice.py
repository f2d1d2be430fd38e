"""Chooses the metrics that a bundle forecasts."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import numpy as np

from index_builder.datasets.dataset import DataSet, Rows
from index_builder.datasets.growth_check import require_growth
from index_builder.datasets.observed import Observed
from model.engagement.types import COUNTER_COLUMNS, metric_types
from model.errors import DataError

_MOST: Final = 0.5
"""Fraction of the videos that must have a count for a metric to be chosen."""
_NEWEST: Final = 0.1
_COLUMN: Final = {kind: column for column, kind in COUNTER_COLUMNS.items()}


def observed_metrics(data: DataSet, metrics: Sequence[str]) -> list[Observed]:
    """Return the data set prepared for each of ``metrics``, or for each counted type that most videos have if there are none.

    Raises:
        DataError: a metric is named twice, is not observed or does not grow, or there is no metric to choose.
    """
    if metrics:
        if repeated := [name for name in metrics if list(metrics).count(name) > 1]:
            raise DataError(f"metric: {repeated[0]!r} is named twice; name each metric once")
        same: dict[tuple[int, ...], str] = {}
        for name in metrics:
            other = same.setdefault(metric_types(name, data.types), name)
            if other != name:
                raise DataError(f"metric: {name!r} counts the same as {other!r}; name one of them")
        found = [Observed.of(data, name) for name in metrics]
        for observed in found:
            require_growth(observed)
        return found
    chosen: list[Observed] = []
    for code, kind in enumerate(data.types):
        counted = _has(data.counters, code)
        name = _COLUMN.get(kind, kind) if counted.any() else kind
        shares = _shares(counted | _has(data.events, code))
        if min(shares) <= _MOST:
            print(f"not forecast: {name} ({min(shares):.0%} of the videos have it)", file=sys.stderr)
            continue
        observed = Observed.of(data, name)
        try:
            require_growth(observed)
        except DataError as error:
            print(f"not forecast: {error}", file=sys.stderr)
            continue
        chosen.append(observed)
    if not chosen:
        raise DataError("metric: most videos have none of the counted types; name a metric with --metric")
    return chosen


def _has(rows: Rows | None, code: int) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Return whether each video has a count above 0 of a type, (V,) bool."""
    if rows is None:
        return np.zeros(1, np.bool_)
    out = np.zeros(len(rows.offsets) - 1, np.bool_)
    out[rows.video[(rows.type == code) & (rows.value > 0)]] = True
    return out


def _shares(has: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[float, float]:
    """Return the share of all videos, and of the newest ones, that have a type. Videos are sorted by publication."""
    newest = has[-max(int(len(has) * _NEWEST), 1) :]
    return float(has.mean()), float(newest.mean())
