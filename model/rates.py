"""How many engagements of each type the next hour brings, from the forecast of the metric.

The forecast's median grows by m counts over the next hour. Type k is expected to grow by

    e_k = c_k(age) m (n_k + W s_k) / (n + W)

where n and n_k are the counts now of the metric and of the type, s_k is the type's usual share of the metric and W a few counts that
speak for it. The factors c make the sums of e_k over held-back videos equal to what came, by age: the median of a skewed
growth lies below its mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.quantiles.calibration import N_ROWS, row_of

Floats = NDArray[np.float64]

_USUAL_COUNTS: Final = 20.0
_CHANCE_VIDEOS: Final = 20
"""So many videos tell as much about an age's factor as all ages together."""
_RANGE: Final = (0.2, 5.0)


@dataclass(frozen=True, slots=True)
class Rates:
    """``factor`` (N_ROWS, K) float64, c by age and type; ``share`` (K,) float64, each type's usual share of the metric."""

    factor: Floats
    share: Floats

    @staticmethod
    def fit(
        video: NDArray[np.int64], age_s: Floats, cold: NDArray[np.bool_], increment: Floats, value_now: Floats, counts: Floats,
        grown: Floats, metric: tuple[int, ...],
    ) -> Rates:  # fmt: skip
        """Fit on N held-back moments.

        Args:
            video: (N,) which video.
            age_s: (N,) seconds.
            cold: (N,) whether nothing was known.
            increment: (N,) median growth of the metric over a span, counts.
            value_now: (N,) the metric's count at the start of the span.
            counts: (N, K) counts of each type then.
            grown: (N, K) by how much each type grew over the span, NaN where that was not observed.
            metric: the types that the metric counts; their shares add up to 1.
        """
        known = np.isfinite(grown)
        total = np.where(known, grown, 0.0)
        base = np.where(known, increment[:, None], 0.0)
        share = (total.sum(0) + 1e-3) / (base.sum(0) + 1e-3)
        share[list(metric)] /= share[list(metric)].sum()
        plain = Rates(np.ones((N_ROWS, grown.shape[1])), share)._plain(increment, value_now, counts)
        plain = np.where(known, plain, 0.0)
        overall = np.clip((total.sum(0) + 1.0) / (plain.sum(0) + 1.0), *_RANGE)
        factor = np.tile(overall, (N_ROWS, 1))
        rows = row_of(age_s, cold)
        for row in np.unique(rows):
            here = rows == row
            for kind in range(grown.shape[1]):
                some = here & known[:, kind]
                videos = len(np.unique(video[some]))
                own = np.clip((total[some, kind].sum() + 1.0) / (plain[some, kind].sum() + 1.0), *_RANGE)
                weight = videos / (videos + _CHANCE_VIDEOS)
                factor[row, kind] = np.exp(weight * np.log(own) + (1 - weight) * np.log(overall[kind]))
        return Rates(factor, share)

    def expected(
        self, age_s: Floats, cold: NDArray[np.bool_], increment: Floats, value_now: Floats, counts: Floats
    ) -> Floats:
        """Expected growth of each type over the span of ``increment``, (N, K) float64 counts; arguments as in ``fit``."""
        out: Floats = self.factor[row_of(age_s, cold)] * self._plain(increment, value_now, counts)
        return out

    def _plain(self, increment: Floats, value_now: Floats, counts: Floats) -> Floats:
        share = (counts + _USUAL_COUNTS * self.share) / (value_now[:, None] + _USUAL_COUNTS)
        out: Floats = increment[:, None] * share
        return out

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """For a bundle's weights."""
        return {"rates.factor": self.factor, "rates.share": self.share}

    @staticmethod
    def of(weights: Mapping[str, NDArray[np.float32]]) -> Rates:
        """Inverse of ``arrays``."""
        return Rates(weights["rates.factor"].astype(np.float64), weights["rates.share"].astype(np.float64))
