"""Decides whether the model is better than the best simple method, and whether that is certain.

Only forecasts for videos that still grow are compared. If counts hardly change, the forecasts of every method are
right. If these forecasts were included, the result would depend on how many there are. A cell of age and horizon is
called growing if its mean real growth is ``GROWING`` or more.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.report.bootstrap import VideoBootstrap
from index_builder.report.evaluation import MODEL, Evaluation
from index_builder.scoring import answers

GROWING: Final = float(np.log2(1.1))
"""Minimum mean growth of a growing cell in log2 units: an increase by a tenth."""
_POWER: Final = ((1.96 + 0.84) / 1.96) ** 2
"""Factor by which the number of videos must grow if the interval just touches 0.

With the number of videos multiplied by this factor, the difference is certain at 95 % in four of five trials.
"""
_MAX_FACTOR: Final = 50.0
"""Maximum factor for the number of videos that is reported. A difference that needs a larger factor is reported as too small."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The comparison of the model with ``rival``, the best other method.

    ``gain``: relative reduction of the mean squared error by the model, 0.1 for 10 %.
    ``low`` and ``high``: 95 % interval of ``gain``.
    ``videos``: number of videos compared.
    ``growing``: True if forecasts of videos that hardly grow were left out.
    """

    rival: str
    gain: float
    low: float
    high: float
    videos: int
    growing: bool

    @property
    def certain(self) -> bool:
        """Return whether the interval excludes 0."""
        return not self.low <= 0 <= self.high

    def more(self) -> float | None:
        """Return the factor > 1 by which the number of videos must grow to make the gain certain.

        Return None if the gain is already certain, if there is no gain, or if the gain is too small. The width of the
        interval is inversely proportional to the square root of the number of videos.
        """
        if self.certain or self.gain <= 0:
            return None
        times = _POWER * ((self.gain - self.low) / self.gain) ** 2
        return times if times <= _MAX_FACTOR else None

    def sentence(self, evaluation: Evaluation) -> str:
        """Return the verdict in words."""
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
        return f"{uncertain} ({-self.gain:.0%} worse, {interval}): {self.rival} is as good on this data"


def verdict(evaluation: Evaluation, bootstrap: VideoBootstrap) -> Verdict | None:
    """Return the verdict on MODEL.

    Return None if no other method was scored, or if the best other method has no errors.
    """
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
    """Return flags (n,) of the forecasts in growing cells, and whether any forecast is left out.

    If no cell is growing, all forecasts are flagged.
    """
    queries = evaluation.queries
    _, cell = np.unique(queries.cell, return_inverse=True)
    mean = np.bincount(cell, queries.pairs.growth) / np.bincount(cell)
    rows = (mean >= GROWING)[cell]
    return (rows, not rows.all()) if rows.any() else (~rows, False)


def squared_errors(evaluation: Evaluation) -> dict[str, NDArray[np.float64]]:
    """Return the squared errors (n,) of each method's mean growth. Growth is in log2 units."""
    y = evaluation.queries.pairs.growth
    return {name: np.square(answers.mean(g) - y) for name, g in evaluation.growths.items()}


def _percent(share: float) -> str:
    return f"{100 * share:.0f}"


def _rounded(n: float) -> int:
    """Round to two digits. More digits would suggest too much precision."""
    size = 10 ** max(int(np.log10(max(n, 1))) - 1, 0)
    return max(int(round(n / size) * size), 1)
