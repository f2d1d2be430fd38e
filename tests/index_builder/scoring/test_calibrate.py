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
from model.quantiles.calibration import COLD
from tests.conftest import Mini


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
    quantiles = np.stack([samples.growth - 1, samples.growth, samples.growth + 1], axis=-1).astype(np.float32)
    first = np.isfinite(samples.growth)
    first &= np.cumsum(first, axis=1) == 1
    # First outcomes of cold starts are off by four widths of the interval, all others by none.
    missed = first & samples.cold[:, None]
    assert missed.sum() >= 100
    quantiles[missed] -= 4
    stretch = calibrate(samples, quantiles).stretch
    assert (stretch[COLD, :, 1] > 3.9).all()
    assert (np.delete(stretch, COLD, axis=0)[..., 1] < 1).all()


def test_with_many_videos_intervals_are_stretched_as_the_worse_half_needs(
    mini: Mini, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = _drawn(mini)
    published = samples.now_us - np.round(samples.age_s * SECOND_US)
    older = published < np.median(published[np.unique(samples.video, return_index=True)[1]])
    # Older videos are above by one width of the interval, newer ones below by two.
    middle = np.where(older[:, None], samples.growth - 1, samples.growth + 2)
    quantiles = np.stack([middle - 1, middle, middle + 1], axis=-1).astype(np.float32)
    few = calibrate(samples, quantiles).stretch
    monkeypatch.setattr(calibrate_module, "_MIN_DRIFT_VIDEOS", 100)
    assert len(np.unique(samples.video)) >= 100
    many = calibrate(samples, quantiles).stretch
    np.testing.assert_allclose(many[..., 0], 2, atol=1e-3)
    np.testing.assert_allclose(many[..., 1], 1, atol=1e-3)
    assert (few[..., 0] <= many[..., 0] + 1e-6).all() and (few[..., 1] <= many[..., 1] + 1e-6).all()


def test_with_few_videos_the_stretch_is_shrunk(mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    samples = _drawn(mini)
    videos = len(np.unique(samples.video))
    assert videos < calibrate_module._MIN_DRIFT_VIDEOS
    # Every outcome is three widths of the interval above the middle.
    middle = samples.growth - 3
    quantiles = np.stack([middle - 1, middle, middle + 1], axis=-1).astype(np.float32)
    for chance, share in ((0, 1.0), (videos, 0.5), (3 * videos, 0.25)):
        monkeypatch.setattr(calibrate_module, "_PRIOR_VIDEOS", chance)
        stretch = calibrate(samples, quantiles).stretch[..., 1]
        np.testing.assert_allclose(stretch[:COLD], 3**share, rtol=1e-3)
        np.testing.assert_allclose(stretch[COLD], 3, rtol=1e-3)


def test_without_outcomes_nothing_is_stretched(mini: Mini) -> None:
    samples = _drawn(mini)
    unknown = replace(samples, growth=np.full_like(samples.growth, np.nan))
    assert (calibrate(unknown, np.zeros((*unknown.growth.shape, 3), np.float32)).stretch == 1).all()


def test_some_cold_samples_are_at_publication(mini: Mini) -> None:
    samples = _drawn(mini)
    ages = samples.age_s[samples.cold]
    assert 0.2 < (ages == 0).mean() < 0.8
    assert (ages > 0).sum() > 10
