"""The verdict of an evaluation: is the model better than the best simple method, and is that certain?

Only forecasts for videos that still grow count. Where counts hardly change, every method is right, and the number of such
forecasts in the evaluation would decide the result. A cell of age and horizon is growing if the mean real growth is ``GROWING``
or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.report.bootstrap import VideoBootstrap
from index_builder.report.evaluation import MODEL, Evaluation

GROWING: Final = float(np.log2(1.1))
"""Log2 units: a tenth more."""
_POWER: Final = ((1.96 + 0.84) / 1.96) ** 2
"""Factor in the number of videos from an interval that just touches 0 to a difference that is certain at 95 % in four of five trials."""
_MAX_FACTOR: Final = 50.0
"""Largest factor in the number of videos that is worth mentioning; a difference that needs more is none."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison of the model with ``rival``, the best other method.

    ``gain`` is by how much the model's mean squared error is lower, 0.1 for 10 %; ``low`` and ``high`` are its 95 % interval.
    ``videos`` is the number of videos compared. ``growing`` says whether forecasts of videos that hardly grow were left out.
    """

    rival: str
    gain: float
    low: float
    high: float
    videos: int
    growing: bool

    @property
    def certain(self) -> bool:
        """Whether the interval excludes 0."""
        return not self.low <= 0 <= self.high

    def more(self) -> float | None:
        """Factor > 1 in the number of videos that would make the gain certain; None if there is no gain, or if it is too small.

        The width of the interval falls with the square root of the number of videos.
        """
        if self.certain or self.gain <= 0:
            return None
        times = _POWER * ((self.gain - self.low) / self.gain) ** 2
        return times if times <= _MAX_FACTOR else None

    def sentence(self, evaluation: Evaluation) -> str:
        """The verdict in words."""
        interval = f"95 % interval {_percent(self.low)} to {_percent(self.high)}"
        if self.certain:
            word = "better" if self.gain > 0 else "worse"
            ends = sorted((abs(self.low), abs(self.high)))
            return f"{word} than {self.rival} by {abs(self.gain):.0%} (95 % interval {_percent(ends[0])} to {_percent(ends[1])})"
        uncertain = f"not certainly better than {self.rival}"
        if (times := self.more()) is not None:
            more = _rounded((times - 1) * (evaluation.sampled_from or self.videos))
            return f"{uncertain} ({self.gain:.0%} better, {interval}): collect about {more:,} more videos"
        if self.gain > 0:
            return f"{uncertain} ({self.gain:.0%} better, {interval}): the difference is too small to tell"
        return f"{uncertain} ({-self.gain:.0%} worse, {interval}): {self.rival} does as well on these data"


def verdict(evaluation: Evaluation, bootstrap: VideoBootstrap) -> Verdict | None:
    """The verdict on MODEL; None if nothing else was scored, or if no other method has errors."""
    rows, growing = growing_rows(evaluation)
    errors = squared_errors(evaluation)
    others = {name: float(e[rows].mean()) for name, e in errors.items() if not name.startswith(MODEL)}
    rival = min(others, key=lambda name: others[name], default=None)
    if rival is None or not others[rival]:
        return None
    ratio = bootstrap.quotient(np.where(rows, errors[MODEL], 0.0), np.where(rows, errors[rival], 0.0))
    videos = len(np.unique(evaluation.queries.video[rows]))
    return Verdict(rival, 1 - ratio.value, 1 - ratio.high, 1 - ratio.low, videos, growing)


def growing_rows(evaluation: Evaluation) -> tuple[NDArray[np.bool_], bool]:
    """Forecasts (n,) in cells that grow, and whether that leaves any out; all forecasts if nothing grows."""
    queries = evaluation.queries
    _, cell = np.unique(queries.cell, return_inverse=True)
    mean = np.bincount(cell, queries.pairs.growth) / np.bincount(cell)
    rows = (mean >= GROWING)[cell]
    return (rows, not rows.all()) if rows.any() else (~rows, False)


def squared_errors(evaluation: Evaluation) -> dict[str, NDArray[np.float64]]:
    """Squared errors (n,) of the median growth of each method, log2 units."""
    y = evaluation.queries.pairs.growth
    return {name: np.square(g[:, g.shape[1] // 2] - y) for name, g in evaluation.growths.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _rounded(n: float) -> int:
    """Two digits; more would claim too much precision."""
    size = 10 ** max(int(np.log10(max(n, 1))) - 1, 0)
    return max(int(round(n / size) * size), 1)
