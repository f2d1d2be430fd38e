"""Fits the self-exciting cascade of ``model.cascade`` to a data set of events. The cascade alone also serves as a baseline.

All constants of the cascade are fitted together. The fit starts from SEISMIC's values and minimises the forecast error
on training cascades. Maximum likelihood does not work, because its estimate of the cascade's memory is zero. Without
memory, the cascade is only a current rate and forecasts nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from index_builder.cascade.observations import Cascades, cascades
from index_builder.datasets.observed import Observed
from index_builder.samples.queries import Queries, cut_queries
from model.cascade import CONSTANTS, DAY_S, MAX_BRANCHING, MAX_COUNT, TREND_LIMIT, UNCORRECTED, Cascade, terms
from model.engagement.bins import HOUR_US, SECOND_US

STEPS: Final = 200
NEAR_STEPS: Final = 60
"""Number of steps of a fit that starts from the constants of another metric's cascade."""
BATCH: Final = 256
"""Maximum number of cascades per group. One step of the fit uses one or more groups."""
_MIN_PAIRS: Final = 1000
"""Minimum number of training pairs. If there are fewer pairs, the fit uses additional ages and horizons."""
_MIN_CORRECTED_CASCADES: Final = 500
"""Minimum number of cascades for correcting forecasts. The regression for the correction would memorise fewer cascades."""
_SHARE: Final = 0.1
"""If there are few cascades, this fraction of the count so far is added to the increments before errors are computed."""
_MAX_PAIRS: Final = 40_000
"""Maximum number of (cut point, horizon) pairs used to fit a cascade for all ages."""
_AGES_H: Final = (0.25, 0.5, 1.0, 2.0, 4.0, 6.0, 8.0, 12.0, 24.0, 48.0, 96.0, 192.0)
_HORIZONS: Final = (1 / 168, 1 / 56, 1 / 28, 1 / 14, 1 / 7, 2 / 7, 3 / 7, 5 / 7, 1.0)
"""Horizons as fractions of the longest horizon."""
_RIDGE: Final = 3e-4
_CONSTANTS: Final[dict[str, tuple[float, float, float]]] = {
    "log_c": (math.log(300), math.log(30), math.log(1800)),
    "theta": (0.242, 0.05, 0.8),
    "beta": (0.5, 0.0, 1.0),
    "log_post": (0.0, -4.0, 8.0),
    "followers": (0.5, 0.0, 1.0),
    "log_kappa": (-2.0, -6.0, 0.5),
    "log_tau_h": (4.0, 2.0, 8.0),
    "log_prior": (0.0, -3.0, 9.0),
    "log_prior_rate": (0.0, -8.0, 8.0),
    "log_weight": (-1.0, -3.0, 1.5),
    "trend": (0.3, -0.5, 3.0),
    "log_mark": (0.0, -3.0, 1.5),
    "log_mark_prior": (2.0, -1.0, 8.0),
    "cos_day": (0.0, -1.5, 1.5),
    "sin_day": (0.0, -1.5, 1.5),
    "cos_half": (0.0, -1.0, 1.0),
    "sin_half": (0.0, -1.0, 1.0),
}
"""Start value, lower bound and upper bound of every constant."""


def _inverse(name: str, start: float | None = None) -> float:
    first, low, high = _CONSTANTS[name]
    start = first if start is None else min(max(start, low + 1e-3 * (high - low)), high - 1e-3 * (high - low))
    return math.log((start - low) / (high - start)) if start > low else -6.0


def _twice_integrated(x: Tensor, c: Tensor, theta: Tensor) -> Tensor:
    """Return the kernel integrated twice from 0 to x. The result is 0 for x <= 0."""
    x = x.clamp(min=0)
    return x - c * ((1 + x / c) ** (1 - theta) - 1) / (1 - theta)


def kernel_matrix(edges: Tensor, c: Tensor, theta: Tensor) -> Tensor:
    """Return, for each pair of bins, the fraction of an event's children that are in bin j if the event is in bin i.

    ``edges`` (B + 1,) are the bounds of B bins. The event is uniformly distributed in its bin. The result has shape (B,
    B). The first axis is j and the second axis is i. All fractions are exact, including those on the diagonal.
    """
    low, high = edges[:-1], edges[1:]

    def f(a: Tensor, b: Tensor) -> Tensor:
        return _twice_integrated(a[:, None] - b[None], c, theta)

    return ((f(high, low) - f(low, low) - f(high, high) + f(low, high)) / (high - low)).clamp(min=0)


def _mean_wave(start: Tensor, stop: Tensor, period_s: float, integral: Callable[[Tensor], Tensor], sign: int) -> Tensor:
    """Return the mean of a wave over an interval. The integral of the wave is ``sign`` times ``integral``."""
    w = 2 * math.pi / period_s
    return sign * (integral(w * stop) - integral(w * start)) / (w * (stop - start))


class PowerLawHawkes:
    """Forecasts the growth of metrics that are fed by events, using the fitted cascade.

    Queries whose videos have the same age are computed together. The fit minimises one of three errors:

        with ``of_increment``        relative error of the increment
        without it, many cascades    error of the growth in log2 units
        without it, few cascades     relative error of the sum of the increment and a tenth of the count so far

    The third error keeps the cascades that grow most from outweighing all other cascades.

    Args:
        of_increment: True to minimise the first error.
        near: cascade from whose constants the fit starts. Then it makes NEAR_STEPS steps.
    """

    name = "power-law Hawkes"

    def __init__(self, *, of_increment: bool = False, near: Cascade | None = None) -> None:
        self._of_increment = of_increment
        self._few = False
        self._steps = STEPS if near is None else NEAR_STEPS
        known = {} if near is None else dict(zip(CONSTANTS, near.constants.tolist(), strict=True))
        self._raw = {
            name: torch.tensor(_inverse(name, known.get(name))).double().requires_grad_() for name in _CONSTANTS
        }
        self._typical = 0.0
        self._followers = 0.0
        self._mean_mark = 1.0
        self._correction: NDArray[np.float64] | None = None

    @property
    def constants(self) -> dict[str, float]:
        """Return the fitted constants by name."""
        return {name: float(value.detach()) for name, value in self._values().items()}

    def fitted(self, max_horizon_s: float) -> Cascade:
        """Return the fitted cascade for horizons up to ``max_horizon_s``. The cascade does not need PyTorch."""
        means = {
            "typical_reach": self._typical,
            "usual_followers": self._followers,
            "usual_mark": self._mean_mark,
        }
        values = self.constants | means
        correction = UNCORRECTED if self._correction is None else self._correction
        return Cascade(np.array([values[name] for name in CONSTANTS]), correction, max_horizon_s)

    def _values(self) -> dict[str, Tensor]:
        return {
            name: low + (high - low) * torch.sigmoid(self._raw[name]) for name, (_, low, high) in _CONSTANTS.items()
        }

    def fit(
        self, observed: Observed, past: Queries, *, seed: int = 0, advance: Callable[[int], None] | None = None
    ) -> Self:
        """Fit on queries whose growth is known, and return ``self``.

        The fit reads the known growth of each query. Apart from this growth, the fit reads only rows up to the query's
        ``now``. ``advance`` is called with 1 after each step.
        """
        parts = cascades(observed, past, BATCH)
        if not parts:
            raise ValueError("no pair to fit on")
        self._few = len(np.unique(past.video)) < _MIN_CORRECTED_CASCADES
        self._typical = float(np.mean([float(p.reach.mean()) for p in parts if len(p.reach)] or [0.0]))
        self._followers = float(np.mean([float(p.followers.mean()) for p in parts]))
        with torch.no_grad():
            marks = [self._marks(part, self._values()) for part in parts]
            total = sum(float(part.counts.sum()) for part in parts)
            self._mean_mark = sum(float(m.sum()) for m in marks) / max(total, 1.0)
        start = {name: value.detach().clone() for name, value in self._raw.items()}
        optimizer = torch.optim.Adam(list(self._raw.values()), lr=0.1)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / self._steps)
        rng = np.random.default_rng(seed)
        at_once = max(1, 2 * BATCH // max(len(parts[0].counts), 1))
        for _ in range(self._steps):
            chosen = [parts[i] for i in rng.permutation(len(parts))[:at_once]]
            loss = torch.cat([self._errors(part) for part in chosen]).mean()
            drift = torch.stack([(self._raw[name] - start[name]).square() for name in start]).sum()
            optimizer.zero_grad()
            (loss + _RIDGE * drift).backward()
            optimizer.step()
            schedule.step()
            if advance:
                advance(1)
        known = np.isfinite(past.pairs.growth)
        if not self._few and not self._of_increment:
            pairs = past.pairs
            corrected = terms(self._plain(observed, past), pairs.value_now, pairs.horizon_s, pairs.age_s)
            self._correction = np.asarray(
                np.linalg.lstsq(corrected[known], pairs.growth[known], rcond=None)[0], np.float64
            )
        return self

    def predict(self, observed: Observed, queries: Queries) -> NDArray[np.float64]:
        """Return the growth (Q,) float64 of each query in log2 units. Growth is never below 0.

        For each query, only rows up to its ``now`` are read.
        """
        growth, pairs = self._plain(observed, queries), queries.pairs
        return (
            growth
            if self._correction is None
            else np.maximum(terms(growth, pairs.value_now, pairs.horizon_s, pairs.age_s) @ self._correction, 0.0)
        )

    def _plain(self, observed: Observed, queries: Queries) -> NDArray[np.float64]:
        out = np.zeros(len(queries.video))
        with torch.no_grad():
            for part in cascades(observed, queries, BATCH):
                increment = self._increment(part)
                out[part.rows] = torch.log2((1 + part.value_now + increment) / (1 + part.value_now)).numpy()
        return out

    def _errors(self, part: Cascades) -> Tensor:
        """Return the smoothed absolute error of each query.

        With ``of_increment``, the error is that of log(1 + increment). Otherwise the error is that of log2(base +
        increment). The base is 1 plus the count so far. If there are few cascades, the base is 1 plus a tenth of the
        count so far.
        """
        increment, now = self._increment(part), part.value_now
        grown = torch.exp2(part.growth) * (1 + now) - (1 + now)
        if self._of_increment:
            error = torch.log((1 + increment) / (1 + grown))
        else:
            beside = 1 + (_SHARE * now if self._few else now)
            error = torch.log2((beside + increment) / (beside + grown))
        return torch.sqrt(error.square() + 0.01)

    def _marks(self, part: Cascades, v: dict[str, Tensor]) -> Tensor:
        value = part.number * torch.exp(v["beta"] * (part.reach - self._typical))
        return torch.zeros_like(part.counts).index_put((part.owner, part.bin), value, accumulate=True)

    def _increment(self, part: Cascades) -> Tensor:
        """Return the expected increase (Q,) float64 of each query's count. Every increase is >= 0."""
        v = self._values()
        c, theta = torch.exp(v["log_c"]), v["theta"]
        edges, n = part.edges, part.past
        low, high = edges[:-1], edges[1:]
        middle = (low + high) / 2
        kernel = kernel_matrix(edges, c, theta)
        survival = (1 + edges / c) ** -theta
        post = torch.exp(v["log_post"] + v["followers"] * (part.followers - self._followers))
        marks = self._marks(part, v)
        excitation = marks @ kernel[:, :n].T + post[:, None] * (survival[:-1] - survival[1:])
        start, stop = part.published_s[:, None] + low, part.published_s[:, None] + high
        rhythm = sum(
            v[cosine] * _mean_wave(start, stop, period, torch.sin, 1)
            + v[sine] * _mean_wave(start, stop, period, torch.cos, -1)
            for cosine, sine, period in (("cos_day", "sin_day", DAY_S), ("cos_half", "sin_half", DAY_S / 2))
        )
        hours = middle / 3600
        pace = torch.exp(rhythm - hours / torch.exp(v["log_tau_h"])) * (1 + hours) ** -torch.exp(v["log_kappa"])
        infectious = self._infectiousness(part, v, (excitation * pace)[:, :n], middle[:n] / edges[n])
        counted = torch.exp(v["log_mark_prior"])
        mark = torch.exp(v["log_mark"]) * ((marks.sum(1) + counted * self._mean_mark) / (part.counts.sum(1) + counted))
        rate = torch.minimum(infectious[:, None] * pace[:, n:], MAX_BRANCHING / mark[:, None])
        system = torch.eye(len(pace[0]) - n) - (rate * mark[:, None])[:, :, None] * kernel[n:, n:]
        future = torch.linalg.solve_triangular(system, (rate * excitation[:, n:]).unsqueeze(-1), upper=False)
        grown = torch.nn.functional.pad(future.squeeze(-1).clamp(0, MAX_COUNT).cumsum(1), (1, 0))
        after = edges[n:] - edges[n]
        upper = torch.searchsorted(after, part.horizon_s).clamp(1, len(after) - 1)
        share = (part.horizon_s - after[upper - 1]) / (after[upper] - after[upper - 1])
        low, high = grown[part.cascade, upper - 1], grown[part.cascade, upper]
        return low + share.clamp(0, 1) * (high - low)

    @staticmethod
    def _infectiousness(part: Cascades, v: dict[str, Tensor], expected: Tensor, share: Tensor) -> Tensor:
        """Return the infectiousness p (C,) of each cascade, with its trend extrapolated.

        ``expected`` (C, past) are the counts that would be expected in the past bins if p were 1. ``share`` (past,) is
        the middle of each bin, as a fraction of the age.
        """
        prior, rate = torch.exp(v["log_prior"]), torch.exp(v["log_prior_rate"])
        power = torch.exp(v["log_weight"])
        whole, recent = (
            (prior + (share**w * part.counts).sum(1)) / (rate + (share**w * expected).sum(1))
            for w in (power, power + 2)
        )
        return recent * torch.exp(v["trend"] * torch.log(recent / whole).clamp(-TREND_LIMIT, TREND_LIMIT))


def fit_cascade(
    observed: Observed,
    until_us: int,
    max_age_us: int,
    max_horizon_us: int,
    *,
    seed: int = 0,
    near: Cascade | None = None,
    advance: Callable[[int], None] | None = None,
) -> Cascade | None:
    """Return a cascade that is fitted on all ages and horizons, from what was known by ``until_us``.

    Return None if nothing was known. ``advance`` is called with 1 after each of STEPS steps. With ``near``, the cascade
    of another metric, the fit starts from its constants and makes NEAR_STEPS steps.
    """
    published = observed.data.published_us
    ages = [a for a in _AGES_H if a * HOUR_US <= max_age_us]
    horizons = [max_horizon_us * share / HOUR_US for share in _HORIZONS]
    past = cut_queries(observed, np.flatnonzero(published < until_us), ages, horizons, until_us)
    if not len(past.video):
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(len(past.video))[:_MAX_PAIRS])
    process = PowerLawHawkes(near=near)
    return process.fit(observed, past.take(chosen), seed=seed, advance=advance).fitted(max_horizon_us / SECOND_US)


def hawkes_growth(
    observed: Observed,
    queries: Queries,
    videos: NDArray[np.int64],
    ages_h: Sequence[float],
    horizons_h: Sequence[float],
    until_us: int,
    *,
    of_increment: bool = False,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Return the growth (Q,) of ``queries``, forecast by a ``PowerLawHawkes``.

    The Hawkes process is fitted on what was known of ``videos`` by ``until_us``. The growth is NaN if nothing was
    known.
    """
    past = cut_queries(observed, videos, ages_h, horizons_h, until_us)
    if len(past.video) < _MIN_PAIRS:
        ages = sorted({a * f for a in ages_h for f in (0.5, 1, 2)})
        past = cut_queries(observed, videos, ages, sorted({h * f for h in horizons_h for f in (0.5, 1)}), until_us)
    if not len(past.video):
        return np.full(len(queries.video), np.nan)
    return PowerLawHawkes(of_increment=of_increment).fit(observed, past, advance=advance).predict(observed, queries)
