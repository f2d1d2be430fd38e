"""Rates are fitted to spans: on simulated growth of a known rate they find it, by age and type."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from index_builder.training.rate_fit import Spans, fit
from model.rates import HOUR_S, N_WAVES, RateInputs, Rates, slope_horizon_s, waves

pytestmark = pytest.mark.slow

DAY_S = 24 * HOUR_S
AGES_H = (1.0, 3.0, 6.0, 12.0, 24.0, 48.0, 96.0, 168.0)
SHARE = 0.1


def truth(age_s: np.ndarray, now_s: np.ndarray, *, daily: float = 0.0) -> np.ndarray:
    """True expectation relative to the forecast's slope, (..., 2): more while young, few likes late, a daily wave."""
    old = np.log1p(age_s / DAY_S)
    views, likes = 1.8 * np.exp(-0.5 * old), 1.8 * np.exp(-1.3 * old)
    wave = waves(now_s, age_s, HOUR_S, slope_horizon_s(age_s, 7 * DAY_S))[..., 1]
    return np.stack([views, likes], -1) * np.exp(daily * wave)[..., None]


def spans(
    n: int,
    seed: int,
    *,
    gap_h: float = 0.0,
    size: float = 3.0,
    tail: float = 1.0,
    daily: float = 0.0,
    drift: float = 1.0,
) -> Spans:
    """Spans of videos whose forecast knows the slope, but neither its random factor (mean 1, exponential to the ``tail``) nor its bias.

    ``gap_h`` 0: the next hour at one age of each video; otherwise a gap of about a day, forecast at three times. ``size``: log10 of the
    largest slope.
    """
    rng = np.random.default_rng(seed)
    m = 3 if gap_h else 1
    start_s = np.exp(rng.uniform(np.log(0.5 * HOUR_S), np.log(20 * DAY_S), n))
    published_s = rng.uniform(0, 1e8, n)
    views = np.floor(10 ** rng.uniform(2, 5, n))
    first = 10 ** rng.uniform(size - 1, size, n)

    def at(m: int) -> tuple[np.ndarray, ...]:
        """Ages, slopes, times and hours of m parts of a gap, even in log age."""
        share = np.arange(m + 1) / m
        edges = start_s[:, None] * ((start_s + gap_h * HOUR_S) / start_s)[:, None] ** share
        age_s = np.diff(edges) / np.diff(np.log(edges)) if gap_h else start_s[:, None]
        # The forecast falls as 1 / age.
        slope = first[:, None] * start_s[:, None] / age_s
        return age_s, slope, published_s[:, None] + age_s, np.diff(edges) / HOUR_S if gap_h else np.ones((n, 1))

    age_s, slope, now_s, hours = at(m)
    fine_s, fine, fine_now, parts = at(200 if gap_h else 1)
    spread = rng.exponential(1.0, n) ** tail
    spread /= (rng.exponential(1.0, 1_000_000) ** tail).mean()
    mean = ((fine * parts)[..., None] * truth(fine_s, fine_now, daily=daily)).sum(1) * drift
    grown = rng.poisson(mean * np.array([1.0, SHARE]) * spread[:, None]).astype(float)
    wave = waves(now_s, age_s, HOUR_S, slope_horizon_s(age_s, 7 * DAY_S))
    each = RateInputs(
        age_s.ravel(),
        np.zeros(n * m, bool),
        slope.ravel(),
        slope.ravel(),
        wave.reshape(n * m, -1),
        views.repeat(m),
        np.stack([views, views * SHARE], 1).repeat(m, 0),
    )
    return Spans(np.arange(n), hours, np.full(n, gap_h <= 6), each, np.zeros((n, m, 2)), grown)


def nothing() -> Spans:
    return spans(3, 0).take(np.zeros(3, bool))


def asked(hour: float = 0.0) -> tuple[RateInputs, np.ndarray]:
    """A forecast at each age, for a video published at each of several hours of the day, and the true rates for a slope of 1000."""
    age_s, n = np.array(AGES_H) * HOUR_S, len(AGES_H)
    now_s = age_s + hour * HOUR_S
    slope, views = np.full(n, 1000.0), np.full(n, 1e6)
    wave = waves(now_s, age_s, HOUR_S, slope_horizon_s(age_s, 7 * DAY_S))
    counts = np.stack([views, views * SHARE], 1)
    return RateInputs(age_s, np.zeros(n, bool), slope, slope, wave, views, counts), now_s


def check(
    rates: Rates, *, daily: float = 0.0, drift: float = 1.0, within: float = 0.1, from_h: float = AGES_H[0]
) -> None:
    for hour in (0.0, 6.0, 15.0) if daily else (0.0,):
        moments, now_s = asked(hour)
        want = 1000 * truth(moments.age_s, now_s, daily=daily) * [1.0, SHARE] * drift
        ratio = (rates.unbounded(moments) / want)[np.array(AGES_H) >= from_h]
        assert np.abs(np.log(ratio)).max() < np.log1p(within), ratio.round(3)


@pytest.mark.parametrize("gap_h", [0.0, 24.0])
def test_the_rate_is_found_by_age_and_type(gap_h: float) -> None:
    """Also from gaps of a day, over which the rate falls; few such gaps say anything about the first hours."""
    check(fit(spans(30_000, 1, gap_h=gap_h, size=4.0), nothing(), (0,)), from_h=3.0 if gap_h else 1.0)


def test_the_rate_is_found_where_engagement_is_rare() -> None:
    """A tenth of a like per hour and less: the median is 0."""
    found = spans(60_000, 2, size=1.0)
    assert np.median(found.grown[:, 1]) == 0
    check(fit(found, nothing(), (0,)), within=0.2)


def test_the_hour_of_the_day_is_found() -> None:
    rates = fit(spans(60_000, 3, size=4.0, daily=0.8), nothing(), (0,))
    assert np.allclose(rates.day[1], 0.8, atol=0.08)
    check(rates, daily=0.8, within=0.12)


def test_gaps_of_a_day_give_no_daily_wave() -> None:
    assert not fit(spans(5000, 3, gap_h=24.0, daily=0.8), nothing(), (0,)).day.any()


def test_holdout_videos_correct_the_level() -> None:
    rates = fit(spans(30_000, 4, size=4.0), spans(20_000, 5, size=4.0, drift=1.3), (0,))
    check(rates, drift=1.3, within=0.12)


def test_a_few_holdout_videos_hardly_change_the_fit_to_many() -> None:
    """Forty heavy-tailed videos, by which alone the factor would be off by half."""
    many, few = spans(30_000, 6, size=4.0, tail=2.5), spans(40, 7, size=4.0, tail=2.5)
    before, after = fit(many, nothing(), (0,)), fit(many, few, (0,))
    own = few.grown[:, 0].sum() / few.expected(before)[:, 0].sum()
    assert abs(np.log(own)) > 0.4
    moments, _ = asked()
    moved = np.log(after.unbounded(moments) / before.unbounded(moments))
    assert np.abs(moved).max() < abs(np.log(own)) / 2


def test_one_video_that_outweighs_all_others_does_not_make_a_rate() -> None:
    found = spans(5000, 8, size=4.0)
    plain = fit(found, nothing(), (0,))
    near = np.flatnonzero(np.abs(found.moments.age_s / HOUR_S - 24) < 4)[0]
    grown = found.grown.copy()
    grown[near] += found.grown.sum(0) * 2
    moved = fit(replace(found, grown=grown), nothing(), (0,))
    moments, _ = asked()
    ratio = moved.unbounded(moments) / plain.unbounded(moments)
    at, far = AGES_H.index(24.0), [i for i, age in enumerate(AGES_H) if age <= 6]
    assert (ratio[at] < 3).all(), "the sum at that age is dozens of times what it was"
    assert np.abs(np.log(ratio[far])).max() < 0.25


def test_expected_and_real_sums_of_later_videos_agree() -> None:
    rates = fit(spans(30_000, 9, gap_h=24.0, size=4.0), spans(3000, 10, gap_h=24.0, size=4.0), (0,))
    later = spans(30_000, 11, gap_h=24.0, size=4.0)
    age_h = later.moments.age_s.reshape(-1, 3)[:, 0] / HOUR_S
    for low, high in ((0, 8), (8, 36), (36, 1e9)):
        rows = (age_h >= low) & (age_h < high)
        assert np.allclose(later.expected(rates)[rows].sum(0) / later.grown[rows].sum(0), 1, atol=0.1)
    least, most = rates.bounds
    assert 0.1 <= least <= 1 <= most <= 10
    ratio = rates.unbounded(later.moments)[:, 0] / later.moments.mean
    assert ((ratio >= least) & (ratio <= most)).mean() > 0.99


def test_shares_of_a_total_add_up_to_one() -> None:
    assert np.isclose(fit(spans(2000, 12), nothing(), (0, 1)).share.sum(), 1)


def test_unobserved_types_have_finite_rates() -> None:
    found = spans(50, 13)
    found.grown[:, 1] = np.nan
    cold = replace(found, moments=replace(found.moments, cold=np.ones(50, bool)))
    for learned, held in ((found, nothing()), (nothing(), found), (cold, nothing()), (nothing(), nothing())):
        rates = fit(learned, held, (0,))
        assert rates.log_factor.shape[2] == 2 and rates.day.shape == (N_WAVES, 2)
        assert np.isfinite(rates.expected(found.moments)).all()


def test_cold_starts_have_factors_of_their_own() -> None:
    found = spans(4000, 14, size=3.0)
    grown = found.grown.copy()
    cold = np.arange(4000) % 2 == 0
    grown[cold] *= 4
    both = replace(found, grown=grown, moments=replace(found.moments, cold=cold))
    rates = fit(both, nothing(), (0,))
    moments, _ = asked()
    ratio = rates.unbounded(replace(moments, cold=np.ones(len(AGES_H), bool))) / rates.unbounded(moments)
    assert np.abs(np.log(ratio / 4)).max() < 0.35
