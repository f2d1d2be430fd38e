"""Draws static SVG: shapes in pixels, axes, and numbers formatted for people. Colours are classes of the page's style sheet."""

from __future__ import annotations

import html
import math
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Final

from model.engagement.bins import HOUR_US

_FACTORS: Final = (1, 1.01, 1.02, 1.05, 1.1, 1.2, 1.3, 1.5, 2, 3, 5, 10, 30, 100, 1000, 10_000, 100_000, 1_000_000)
TIMES: Final = "\N{MULTIPLICATION SIGN}"
_STEPS: Final = ((1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), tuple(1 + k / 10 for k in range(90)))
_WIDE: Final = frozenset("WF")


@dataclass(frozen=True, slots=True)
class Scale:
    """Linear map from [low, high] to pixels [start, stop]. Values outside the range map to the nearest end, and NaN maps to ``start``."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        """Return the pixel of a value."""
        share = (value - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return self.start + (min(max(share, 0.0), 1.0) if share == share else 0.0) * (self.stop - self.start)

    def holds(self, value: float) -> bool:
        """Return whether a value is inside [low, high]."""
        return self.low <= value <= self.high


@dataclass(slots=True)
class Svg:
    """A drawing of ``width`` by ``height`` pixels that is scaled to fit. ``label`` describes it for screen readers."""

    width: float
    height: float
    label: str
    parts: list[str] = field(default_factory=list)

    def line(self, points: Iterable[tuple[float, float]], cls: str) -> None:
        """Draw a line through points."""
        self.parts.append(f'<polyline class="{cls}" points="{_points(points)}"/>')

    def area(self, points: Iterable[tuple[float, float]], cls: str) -> None:
        """Draw a filled area with the given outline."""
        self.parts.append(f'<polygon class="{cls}" points="{_points(points)}"/>')

    def rect(self, x: float, y: float, width: float, height: float, cls: str, opacity: float = 1.0) -> None:
        """Draw a filled rectangle."""
        self.parts.append(
            f'<rect class="{cls}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" opacity="{opacity:.2f}"/>'
        )

    def dot(self, x: float, y: float, cls: str, *, radius: float = 3.5, tip: str = "") -> None:
        """Draw a dot. ``tip`` is shown when the pointer is over the dot."""
        title = f"<title>{html.escape(tip)}</title>" if tip else ""
        self.parts.append(f'<circle class="{cls}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">{title}</circle>')

    def text(self, x: float, y: float, text: str, cls: str = "", anchor: str = "start") -> None:
        """Draw a line of text. ``y`` is the vertical middle of the text."""
        self.parts.append(
            f'<text class="{cls}" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" dy=".35em">{html.escape(text)}</text>'
        )

    def x_axis(self, scale: Scale, ticks: Sequence[tuple[float, str]], top: float, bottom: float) -> None:
        """Draw grid lines upwards from ``bottom``, with labels below ``bottom``."""
        for value, label in ticks:
            self.line([(scale(value), top), (scale(value), bottom)], "grid")
            self.text(scale(value), bottom + 11, label, "tick", "middle")

    def y_axis(self, scale: Scale, ticks: Sequence[tuple[float, str]], left: float, right: float) -> None:
        """Draw grid lines to the right from ``left``, with labels to the left of ``left``."""
        for value, label in ticks:
            self.line([(left, scale(value)), (right, scale(value))], "grid")
            self.text(left - 6, scale(value), label, "tick", "end")

    def __html__(self) -> str:
        """Return the drawing as markup that a template does not escape."""
        return str(self)

    def __str__(self) -> str:
        return (
            f'<svg viewBox="0 0 {self.width:g} {self.height:g}" role="img" aria-label="{html.escape(self.label)}">'
            f"{''.join(self.parts)}</svg>"
        )


def _points(points: Iterable[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def ticks(low: float, high: float, about: int = 4) -> list[float]:
    """Return round values inside [low, high]. The distance between neighbouring values is 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1, 2, 5, 10) if m * power >= raw * 0.999)
    return [k * step for k in range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)]


def factor_ticks(low: float, high: float, limit: int = 6) -> list[tuple[float, str]]:
    """Return the ticks of a log2 axis, labelled as factors. Factors below 1 are the reciprocals of factors above 1."""
    every = sorted({math.log2(f) for f in _FACTORS} | {-math.log2(f) for f in _FACTORS})
    inside = [v for v in every if low <= v <= high]
    apart = (high - low) / limit
    # Ticks are chosen outwards from the factor 1, so that the factor 1 is never skipped.
    kept: list[float] = []
    for value in sorted(inside, key=abs):
        if all(abs(value - other) >= apart * 0.75 for other in kept):
            kept.append(value)
    return [(v, factor(2**v)) for v in sorted(kept)]


def count_ticks(low: float, high: float, limit: int = 5) -> list[tuple[float, str]]:
    """Return the ticks of an axis of log2(1 + count), labelled as counts."""
    for steps in _STEPS:
        kept: list[tuple[float, str]] = []
        for value in sorted(m * 10**e for e in range(13) for m in steps):
            at = math.log2(1 + value)
            if low <= at <= high and (not kept or at - kept[-1][0] >= (high - low) / limit):
                kept.append((at, count(value)))
        if len(kept) > 1:
            return kept
    return [(v, count(2**v - 1)) for v in (low, high)]


def factor(value: float) -> str:
    """Format a factor such as 1.18 after a multiplication sign, with as many decimals as are useful."""
    if not math.isfinite(value):
        return "-"
    if value < 0.1:
        return f"{TIMES}{value:.2g}"
    return TIMES + (f"{value:.2f}".rstrip("0").rstrip(".") if value < 10 else f"{value:,.0f}")


def count(value: float) -> str:
    """Format a count such as 950, 12.3k or 4.56M."""
    for size, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            return f"{value / size:.3g}{name}"
    return f"{value:.0f}"


def hours(us: float) -> str:
    """Format a duration in microseconds such as 20 min, 2.5 h or 72 h."""
    value = us / HOUR_US
    return f"{value * 60:.0f} min" if value < 1 else f"{value:.2g} h" if value < 10 else f"{value:.0f} h"


def number(value: float | None, places: int = 3) -> str:
    """Format a number. Return a dash if there is none."""
    return "-" if value is None or not math.isfinite(value) else f"{value:.{places}f}"


def short(text: str, columns: int) -> str:
    """Shorten text to a width in character columns. A wide character takes two columns. Control characters are removed."""
    out: list[str] = []
    used = 0
    for letter in " ".join(text.split()):
        if unicodedata.category(letter) == "Cc":
            continue
        used += 0 if unicodedata.combining(letter) else 2 if unicodedata.east_asian_width(letter) in _WIDE else 1
        if used > columns:
            return "".join(out).rstrip() + "…"
        out.append(letter)
    return "".join(out)
