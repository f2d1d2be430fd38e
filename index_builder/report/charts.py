"""Draws the charts of a report: turns plain numbers into SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.report.bootstrap import Mean
from index_builder.report.examples import Example
from index_builder.report.svg import Scale, Svg, count, count_ticks, factor, factor_ticks, hours, short, ticks
from model.engagement.bins import HOUR_US

_WIDTH: Final = 440.0
_ROW: Final = 24.0
_BINS: Final = 36


@dataclass(frozen=True, slots=True)
class ChartRow:
    """A row of a dot plot: the model's mean, the other method's mean, and a note at the right end."""

    label: str
    mean: Mean
    other: Mean | None
    note: str


def dots(label: str, rows: Sequence[ChartRow], *, factors: bool, target: float | None = None) -> Svg:
    """Return a dot plot of means with their intervals, with one line per row.

    With ``factors``, values are log2 and the axis shows factors, starting at 1.
    """
    left, right, top = 152.0, _WIDTH - 74, 8.0
    bottom = top + _ROW * len(rows)
    means = [m for row in rows for m in (row.mean, row.other) if m is not None]
    values = [v for m in means for v in (m.low, m.high, m.value) if math.isfinite(v)] + [target or 0.0]
    low, high = (
        (0.0, max(values) * 1.05) if factors else (min(min(values[:-1], default=0.0), target or 1.0), max(values))
    )
    margin = 0.0 if factors else (high - low) * 0.08
    scale = Scale(low - margin, max(high + margin, low + 1e-6), left, right)
    svg = Svg(_WIDTH, bottom + 26, label)
    marks = factor_ticks(scale.low, scale.high, 5) if factors else _percents(scale.low, scale.high)
    svg.x_axis(scale, marks, top, bottom)
    if target is not None:
        svg.line([(scale(target), top), (scale(target), bottom)], "aim")
    for i, row in enumerate(rows):
        y = top + _ROW * (i + 0.5)
        svg.text(left - 8, y, short(row.label, 22), "", "end")
        for mean, cls, shift in ((row.other, "other", 4.5), (row.mean, "model", -3.5 if row.other else 0.0)):
            if mean is None or not math.isfinite(mean.value):
                continue
            svg.line([(scale(mean.low), y + shift), (scale(mean.high), y + shift)], f"bar {cls}")
            shown = [factor(2**v) if factors else f"{v:.1%}" for v in (mean.value, mean.low, mean.high)]
            svg.dot(scale(mean.value), y + shift, cls, tip=f"{row.label}: {shown[0]} ({shown[1]} to {shown[2]})")
        svg.text(_WIDTH, y, row.note, "tick", "end")
    return svg


def _percents(low: float, high: float, about: int = 4) -> list[tuple[float, str]]:
    marks = ticks(low, high, about)
    places = 0 if all(abs(v * 100 - round(v * 100)) < 1e-6 for v in marks) else 1
    return [(v, f"{v:.{places}%}") for v in marks]


def reliability(
    label: str,
    model: tuple[Sequence[float], Sequence[Mean]],
    other: tuple[Sequence[float], Sequence[Mean]] | None,
    groups: dict[str, list[Mean]],
) -> Svg:
    """Plot the fraction of outcomes below each quantile against the quantile's nominal level.

    ``model`` and ``other`` are levels and fractions. ``groups`` are fractions at the model's levels, and each group is
    a thin line.
    """
    left, right, top, bottom = 52.0, _WIDTH - 20, 10.0, 300.0
    x, y = Scale(0, 1, left, right), Scale(0, 1, bottom, top)
    svg = Svg(_WIDTH, bottom + 42, label)
    marks = [(v / 10, f"{v * 10}%") for v in (0, 1, 3, 5, 7, 9, 10)]
    svg.x_axis(x, marks, top, bottom)
    svg.y_axis(y, marks, left, right)
    svg.line([(x(0), y(0)), (x(1), y(1))], "aim")
    for name, means in groups.items():
        points = [(x(level), y(m.value)) for level, m in zip(model[0], means, strict=True)]
        svg.line(points, "group")
        for (px, py), m in zip(points, means, strict=True):
            svg.dot(px, py, "group", radius=2, tip=f"{name}: {m.value:.1%} of {m.n:,}")
    for curve, cls, shift in ((other, "other", 3.0), (model, "model", 0.0)):
        if curve is None:
            continue
        levels, shares = curve
        svg.line([(x(level) + shift, y(m.value)) for level, m in zip(levels, shares, strict=True)], f"curve {cls}")
        for level, m in zip(levels, shares, strict=True):
            svg.line([(x(level) + shift, y(m.low)), (x(level) + shift, y(m.high))], f"bar {cls}")
            svg.dot(x(level) + shift, y(m.value), cls, tip=f"below q{level:g}: {m.value:.1%}")
    svg.text((left + right) / 2, bottom + 30, "level of the quantile", "tick", "middle")
    return svg


def density(label: str, forecast: NDArray[np.float64], real: NDArray[np.float64]) -> Svg:
    """Plot the density of forecast growth (horizontal) and real growth (vertical), both in log2. Darker means more forecasts."""
    left, right, top, bottom = 52.0, _WIDTH - 20, 10.0, 330.0
    low, high = (float(v) for v in np.quantile(np.concatenate([forecast, real]), [0.002, 0.998]))
    low, high = min(low, 0.0), max(high, low + 0.1)
    x, y = Scale(low, high, left, right), Scale(low, high, bottom, top)
    svg = Svg(_WIDTH, bottom + 42, label)
    svg.x_axis(x, factor_ticks(low, high), top, bottom)
    svg.y_axis(y, factor_ticks(low, high), left, right)
    edges = np.linspace(low, high, _BINS + 1)
    table, _, _ = np.histogram2d(np.clip(forecast, low, high), np.clip(real, low, high), bins=(edges, edges))
    maximum = math.log1p(table.max())
    width, height = (right - left) / _BINS, (bottom - top) / _BINS
    for i, j in np.argwhere(table > 0).tolist():
        strength = 0.12 + 0.88 * math.log1p(table[i, j]) / maximum
        svg.rect(left + i * width, bottom - (j + 1) * height, width + 0.3, height + 0.3, "heat", strength)
    svg.line([(x(low), y(low)), (x(high), y(high))], "aim")
    svg.text((left + right) / 2, bottom + 30, "forecast growth (median)", "tick", "middle")
    return svg


def fan(example: Example) -> Svg:
    """Plot counts over the video's age.

    The chart shows the observed counts up to now. After now, the chart shows the forecast's interval, the forecast's
    median and the real counts.
    """
    left, right, top, bottom = 46.0, 294.0, 8.0, 158.0
    now = example.age_us
    ages = np.concatenate([[now], now + example.horizons_us]) / HOUR_US
    start = np.full((1, 3), example.value_now)
    levels = np.log2(1 + np.concatenate([start, example.quantiles]))
    # Counts far below the current count would flatten the fan. So the axis ends at ``floor``, and a line may leave the
    # chart at the bottom.
    floor = np.log2(1 + example.value_now) - max(1.0, float(levels[-1, 2] - levels[0, 1]))
    seen, later = (np.stack([p[:, 0] / HOUR_US, np.log2(1 + p[:, 1])], 1) for p in (example.seen, example.later))
    shown = np.concatenate([levels.ravel(), later[:, 1], np.maximum(seen[:, 1], floor)])
    margin = max(float(np.ptp(shown)) * 0.06, 0.05)
    x = Scale(0, float(max(ages[-1], later[:, 0].max(initial=0.0))), left, right)
    y = Scale(float(shown.min()) - margin, float(shown.max()) + margin, bottom, top)
    svg = Svg(
        300,
        184,
        f"{example.value_now:,.0f} at {hours(now)}; forecast and outcome up to {hours(now + int(example.horizons_us[-1]))}",
    )
    svg.x_axis(x, [(v, f"{v:g} h") for v in _hours(x.high)], top, bottom)
    svg.y_axis(y, count_ticks(y.low, y.high), left, right)
    outline = [*zip(ages, levels[:, 0], strict=True), *zip(ages[::-1], levels[::-1, 2], strict=True)]
    svg.area([(x(a), y(v)) for a, v in outline], "fan")
    svg.line([(x(a), y(v)) for a, v in zip(ages, levels[:, 1], strict=True)], "curve model")
    svg.line([(x(ages[0]), top), (x(ages[0]), bottom)], "now")
    svg.line([(x(a), y(v)) for a, v in seen if y.holds(v)], "curve seen")
    few = len(seen) + len(later) <= 40
    for points, cls in ((seen, "seen"), (later, "outcome")):
        for age, value in points[:: 1 if few else 4]:
            if y.holds(value):
                svg.dot(x(age), y(value), cls, radius=2.6, tip=f"{count(2**value - 1)} at {age:.1f} h")
    return svg


def _hours(longest: float) -> list[float]:
    step = next((s for s in (1, 3, 6, 12, 24, 48, 96, 168, 336) if longest / s <= 5), longest / 4)
    return [k * step for k in range(int(longest / step) + 1)]
