"""What held-back videos say: a cold start counts once, and is learned at publication too."""

from __future__ import annotations

import numpy as np

from index_builder.dataset import load_dataset
from index_builder.heldback import calibrate
from index_builder.samples import Observed, Samples, draw
from model.bins import HOUR_US
from model.calibration import COLD
from tests.conftest import Mini


def _drawn(mini: Mini) -> Samples:
    return draw(
        Observed.of(load_dataset(mini.data, before_us=mini.as_of_us), "view"), until_us=mini.as_of_us,
        max_age_us=20 * 24 * HOUR_US, max_horizon_us=48 * HOUR_US, n_labels=3, cuts_per_video=4, seed=0,
    )  # fmt: skip


def test_a_cold_start_is_calibrated_by_its_first_outcome(mini: Mini) -> None:
    samples = _drawn(mini)
    quantiles = np.stack([samples.growth - 1, samples.growth, samples.growth + 1], axis=-1).astype(np.float32)
    first = np.isfinite(samples.growth)
    first &= np.cumsum(first, axis=1) == 1
    # First outcomes of cold starts are missed by four widths of the interval, all others by none.
    missed = first & samples.cold[:, None]
    assert missed.sum() >= 100
    quantiles[missed] -= 4
    told = calibrate(samples, quantiles).stretch
    assert (told[COLD, :, 1] > 3.9).all()
    assert (np.delete(told, COLD, axis=0)[..., 1] < 1).all()


def test_some_cold_starts_stand_at_publication(mini: Mini) -> None:
    samples = _drawn(mini)
    ages = samples.age_s[samples.cold]
    assert 0.2 < (ages == 0).mean() < 0.8
    assert (ages > 0).sum() > 10
