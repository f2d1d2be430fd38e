"""Computes scores of forecasts as sums, which can be added over labels, days and replicas.

All values are in log2 units of growth. The observed growth is
y = log2((1 + count at the target time) / (1 + count at the time of the forecast))
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final
from urllib.parse import quote, unquote

import numpy as np
from numpy.typing import NDArray

from model.quantiles.calibration import AGE_EDGES_H, COLD, HORIZON_EDGES_H
from model.quantiles.head import HIGH, LOW, MEDIAN, QUANTILES
from service.quality.label import Label

_UP_TO: Final = {str(level): f"upto{round(100 * level)}" for level in QUANTILES}
SUMS: Final = (
    "n",
    "y",
    "yy",
    "squared",
    "absolute",
    "below",
    "above",
    "pinball",
    "width",
    "inside50",
    "inside90",
    *_UP_TO.values(),
)
"""Names of the sums.

``n``: number of labels.
``y``: sum of the observed growth y.
``yy``: sum of the square of y.
``squared``: sum of the mean's squared error.
``absolute``: sum of the median's absolute error.
``below``: number of outcomes below the 80 % interval, which ranges from q0.1 to q0.9.
``above``: number of outcomes above the 80 % interval.
``pinball``: sum of the mean pinball loss of q0.1, q0.5 and q0.9.
``width``: sum of the 80 % interval's width.
``inside50``: number of outcomes from q0.25 to q0.75.
``inside90``: number of outcomes from q0.05 to q0.95.
``upto5`` to ``upto95``: number of outcomes up to each quantile, q0.05 to q0.95.
"""
UNSCORED: Final = ("unlabelled", "gone")
"""Reasons why a label is not scored. ``unlabelled``: the label has no outcome. ``gone``: the label's video was deleted."""

_FIELD: Final = re.compile(r"(?:([^|]*)\|)?(\d{1,3}):(\d{1,3}):(\w+)", re.ASCII)

Cell = tuple[int, int]


def field(label: Label, name: str) -> str:
    """Return the name of a field to which a label adds an amount: ``<metric>|<age bucket>:<horizon bucket>:<name>``."""
    return f"{quote(label.metric, safe='')}|{label.age_bucket}:{label.horizon_bucket}:{name}"


def growth(labels: Sequence[Label], counts: Sequence[float]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the observed growth of n labels, of shape (n,), and the predicted growth, of shape (n, 1 + len(QUANTILES)).

    The predicted growth is the mean, then the quantiles.
    """
    then = 1.0 + np.array([label.value_now for label in labels])
    y = np.maximum(np.log2((1.0 + np.array(counts)) / then), 0.0)
    predicted = np.log2((1.0 + np.array([(label.mean, *label.quantiles) for label in labels])) / then[:, None])
    return y, predicted


def sums(labels: Sequence[Label], y: NDArray[np.float64], predicted: NDArray[np.float64]) -> dict[str, float]:
    """Return the amounts that the labels add to each sum in ``SUMS``, keyed by ``field``."""
    mean, quantiles = predicted[:, 0], predicted[:, 1:]
    scored = quantiles[:, (LOW, MEDIAN, HIGH)]
    low, median, high = scored.T
    error = y[:, None] - scored
    level = np.array(QUANTILES)[[LOW, MEDIAN, HIGH]]
    parts = np.stack(
        [
            np.ones(len(y)),
            y,
            y * y,
            (mean - y) ** 2,
            np.abs(median - y),
            y < low,
            y > high,
            np.maximum(level * error, (level - 1) * error).mean(1),
            high - low,
            (y >= quantiles[:, LOW + 1]) & (y <= quantiles[:, HIGH - 1]),
            (y >= quantiles[:, LOW - 1]) & (y <= quantiles[:, HIGH + 1]),
            *(y[:, None] <= quantiles).T,
        ]
    )
    out: dict[str, float] = defaultdict(float)
    for i, label in enumerate(labels):
        for name, value in zip(SUMS, parts[:, i].tolist(), strict=True):
            out[field(label, name)] += value
    return dict(out)


class ScoreSums:
    """Sums per cell. A cell is a pair of age bucket and horizon bucket."""

    def __init__(self) -> None:
        self.cells: dict[Cell, dict[str, float]] = defaultdict(lambda: defaultdict(float))

    def scores(self, cells: Iterable[Cell] | None = None) -> dict[str, Any]:
        """Return each score, computed over the labels of all given cells together. An undefined score is None.

        If ``cells`` is None, the labels of every cell are used.
        """
        total: dict[str, float] = defaultdict(float)
        for cell in self.cells if cells is None else cells:
            for name, value in self.cells[cell].items():
                total[name] += value
        n = total["n"]
        unscored = {name: round(total[name]) for name in UNSCORED}
        if not n:
            names = (
                "nmse",
                "mae",
                "coverage",
                "below",
                "above",
                "pinball",
                "width",
                "coverage_50",
                "coverage_90",
                "up_to",
            )
            return {"labels": 0, **unscored, **dict.fromkeys(names)}
        variance = total["yy"] / n - (total["y"] / n) ** 2
        return {
            "labels": round(n),
            **unscored,
            "nmse": total["squared"] / n / variance if variance > 1e-12 else None,
            "mae": total["absolute"] / n,
            "coverage": 1 - (total["below"] + total["above"]) / n,
            "below": total["below"] / n,
            "above": total["above"] / n,
            "pinball": total["pinball"] / n,
            "width": total["width"] / n,
            "coverage_50": total["inside50"] / n,
            "coverage_90": total["inside90"] / n,
            "up_to": {level: total[name] / n for level, name in _UP_TO.items()},
        }

    def horizon_buckets(self) -> list[int]:
        """Return the horizon buckets that have labels, in ascending order."""
        return sorted({bucket for _, bucket in self.cells})


class ScoresOfModel:
    """Sums of one model, by metric. Sums without a metric, which an earlier release wrote, have the metric ""."""

    def __init__(self) -> None:
        self.by_metric: dict[str, ScoreSums] = {}

    def add(self, fields: Mapping[str, float]) -> None:
        """Add sums that ``sums`` returned. Fields with a different format are skipped."""
        for name, value in fields.items():
            if (found := _FIELD.fullmatch(name)) is not None:
                own = self.by_metric.setdefault(unquote(found[1] or ""), ScoreSums())
                own.cells[int(found[2]), int(found[3])][found[4]] += value

    def sorted(self, metrics: Sequence[str]) -> list[tuple[str, ScoreSums]]:
        """Return the sums of each metric, those of ``metrics`` first and in their order."""
        order = {metric: place for place, metric in enumerate(metrics)}
        return sorted(self.by_metric.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))


def age_name(bucket: int) -> str:
    """Return the range of ages in an age bucket, as text."""
    return "cold" if bucket == COLD else _range(AGE_EDGES_H, bucket)


def horizon_name(bucket: int) -> str:
    """Return the range of horizons in a horizon bucket, as text."""
    return _range(HORIZON_EDGES_H, bucket)


def _range(edges: Sequence[float], index: int) -> str:
    if index == len(edges):
        return f"from {edges[-1]:g} h"
    return f"{edges[index - 1] if index else 0:g} to {edges[index]:g} h"
