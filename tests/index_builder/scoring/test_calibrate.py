"""Calibration on the holdout: how far intervals are stretched, and that a cold start counts once; cold samples at publication."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.samples.samples import Samples, draw_samples
from index_builder.scoring import calibrate as calibrate_module
from index_builder.scoring.calibrate import calibrate
from model.engagement.bins import HOUR_US, SECOND_US
from model.quantiles import calibration
from model.quantiles.calibration import COLD, Calibration
from model.quantiles.head import HIGH, LOW, N_PARTS, QUANTILES
from tests.conftest import Mini
from tests.model.growth_parts import parts

LOWER, UPPER = LOW, HIGH - 1
"""Positions of the ends of the 80 % interval in a stretch."""


def _drawn(mini: Mini) -> Samples:
    return draw_samples(
        Observed.of(load_dataset(mini.data, before_us=mini.as_of_us), "view"),
        until_us=mini.as_of_us,
        max_age_us=20 * 24 * HOUR_US,
        max_horizon_us=48 * HOUR_US,
        n_labels=3,
        cuts_per_video=4,
        seed=0,
    )


def test_a_cold_start_is_calibrated_by_its_first_outcome_only(mini: Mini) -> None:
    samples = _drawn(mini)
    found = parts(samples.growth)
    first = np.isfinite(samples.growth)
    first &= np.cumsum(first, axis=1) == 1
    # First outcomes of cold starts are off by four widths of the interval, all others by none.
    missed = first & samples.cold[:, None]
    assert missed.sum() >= 100
    found[missed, :2] -= 4
    stretch = calibrate(samples, found).stretch
    # The median moves by half of the interval's half-width at most.
    assert (stretch[COLD, :, UPPER] > 3.4).all()
    assert (np.delete(stretch, COLD, axis=0)[..., UPPER] < 1).all()


def test_with_many_videos_intervals_are_stretched_as_the_worse_half_needs(
    mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_MAX_SHIFT", 0.0)
    samples = _drawn(mini)
    published = samples.now_us - np.round(samples.age_s * SECOND_US)
    older = published < np.median(published[np.unique(samples.video, return_index=True)[1]])
    # Older videos are above by one width of the interval, newer ones below by two.
    middle = np.where(older[:, None], samples.growth - 1, samples.growth + 2)
    found = parts(middle)
    few = calibrate(samples, found).stretch
    monkeypatch.setattr(calibrate_module, "_MIN_DRIFT_VIDEOS", 100)
    assert len(np.unique(samples.video)) >= 100
    many = calibrate(samples, found).stretch
    np.testing.assert_allclose(many[..., LOWER], 2, atol=1e-3)
    np.testing.assert_allclose(many[..., UPPER], 1, atol=1e-3)
    assert (few <= many + 1e-6)[..., [LOWER, UPPER]].all()
    # The 0.25 and 0.75 quantiles are half as far from the median, and the 0.05 and 0.95 quantiles half as far again.
    np.testing.assert_allclose(
        many[..., [0, 2, 3, 5]], np.broadcast_to([4 / 3, 4, 2, 2 / 3], (*many.shape[:2], 4)), atol=1e-3
    )


def test_with_few_videos_the_stretches_are_shrunk_towards_what_all_need(
    mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(calibration, "_MAX_SHIFT", 0.0)
    samples = _drawn(mini)
    videos = len(np.unique(samples.video))
    assert videos < calibrate_module._MIN_DRIFT_VIDEOS
    # Every outcome is above the middle: by two widths of the interval at long horizons, and by four at short ones.
    short = samples.horizon_s < 8 * 3600
    found = parts(samples.growth - np.where(short, 4, 2))
    column = calibration.calibration_column(np.array([3600.0, 20 * 3600.0]))
    for chance, share in ((0, 1.0), (videos, 0.5), (3 * videos, 0.25)):
        monkeypatch.setattr(calibrate_module, "_PRIOR_VIDEOS", chance)
        stretch = calibrate(samples, found).stretch[..., UPPER]
        # More than a tenth of the outcomes need 4, so all of them together need 4.
        np.testing.assert_allclose(stretch[:COLD, column[0]], 4, rtol=1e-3)
        rows = calibration.calibration_row(np.array([12.0, 24.0]) * 3600, np.zeros(2, bool))
        np.testing.assert_allclose(stretch[rows, column[1]], 2**share * 4 ** (1 - share), rtol=1e-3)


def test_what_all_need_counts_videos_and_not_their_outcomes(mini: Mini) -> None:
    samples = _drawn(mini)
    samples = samples.take(np.isfinite(samples.growth).any(1) & ~samples.cold)
    some = np.isin(samples.video, np.unique(samples.video)[:40])
    samples = samples.take(some)
    outcomes = np.isfinite(samples.growth)
    # All outcomes of one video lie equally far above the median.
    error = np.exp(np.random.default_rng(3).normal(0, 0.5, 40))
    found = parts(samples.growth - error[np.unique(samples.video, return_inverse=True)[1]][:, None])
    none = np.zeros((calibration.N_ROWS, calibration.N_COLUMNS))
    stretch = calibrate_module._common(samples, found, outcomes, none)
    narrow = calibrate_module._common(samples, parts(samples.growth), outcomes, none)
    assert (narrow > 0.05 ** (40 / 140) - 1e-6).all() and (narrow < 0.5).all()
    # One of 41 videos lies beyond each of the ordered errors, so the 0.9 quantile is the 37th of 40.
    assert stretch[UPPER] == pytest.approx(np.sort(error)[36], rel=1e-4)
    assert len(np.unique(np.bincount(samples.video)[np.unique(samples.video)])) > 1


def test_with_few_videos_the_shift_is_shrunk(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _drawn(mini)
    videos = len(np.unique(samples.video))
    # Every outcome lies 0.4 of a step below the median.
    found = parts(samples.growth + 0.2)
    for chance, share in ((0, 1.0), (videos, 0.5)):
        monkeypatch.setattr(calibrate_module, "_PRIOR_VIDEOS", chance)
        fitted = calibrate(samples, found)
        np.testing.assert_allclose(fitted.shift[:COLD], -0.4 * share, atol=1e-4)
        np.testing.assert_allclose(fitted.shift[COLD], -0.4, atol=1e-4)


@pytest.mark.parametrize("width", [0.3, 1.0, 2.5])
def test_every_quantile_is_calibrated_at_its_own_level(width: float) -> None:
    """The growth is a skew mixture, so no single factor for an interval would be right for all of its quantiles."""
    rng = np.random.default_rng(4)
    n = 40_000
    noise = np.where(rng.random(n) < 0.5, rng.exponential(1.0, n), -0.3 * rng.random(n))
    median = np.full(n, 5.0)
    growth = median + noise - 0.1
    age_s, horizon_s, cold = np.exp(rng.uniform(6, 13, n)), np.exp(rng.uniform(6, 13, n)), rng.random(n) < 0.1
    found = parts(median, width).astype(np.float64)
    half = np.arange(n) < n // 2
    fitted = Calibration.fit(age_s[half], horizon_s[half], cold[half], median[half], found[half, 2:], growth[half])
    stretched = fitted.apply(age_s, horizon_s[:, None], cold, found[:, None, :2], found[:, None, 2:])[:, 0]
    assert (np.diff(stretched[:, 1:], axis=1) >= 0).all()
    for at, level in enumerate(QUANTILES):
        assert (growth[~half] <= stretched[~half, 1 + at]).mean() == pytest.approx(level, abs=0.015)


def test_without_outcomes_nothing_is_stretched(mini: Mini) -> None:
    samples = _drawn(mini)
    unknown = replace(samples, growth=np.full_like(samples.growth, np.nan))
    assert (calibrate(unknown, np.zeros((*unknown.growth.shape, N_PARTS), np.float32)).stretch == 1).all()


def test_some_cold_samples_are_at_publication(mini: Mini) -> None:
    samples = _drawn(mini)
    ages = samples.age_s[samples.cold]
    assert 0.2 < (ages == 0).mean() < 0.8
    assert (ages > 0).sum() > 10
