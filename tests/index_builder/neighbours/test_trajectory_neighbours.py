"""Neighbours by trajectory: where the shape of a curve tells its growth, they forecast it, and newer ones do so after a drift."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.neighbours.base_fit import fit_base
from index_builder.neighbours.trajectory_fit import fit_projection, residuals
from index_builder.samples.network_inputs import SampleSet, token_sequences
from index_builder.samples.samples import read_samples
from index_builder.simulation.simulate import DEFAULT_START_US, simulate
from index_builder.simulation.videos import DAY_US
from index_builder.training.config import TrainConfig
from index_builder.training.point_in_time_bank import PointInTimeBank
from model.engagement.bins import HOUR_US
from model.engagement.types import metric_types
from model.features.creator import N_CREATOR
from model.features.shape import shapes
from model.features.trajectory import TrajectorySpace
from model.growth.curve_kernels import N_GROWTH, growth_horizons_us
from model.growth.curves import curves, trajectory_cuts

AGE_US = 28 * HOUR_US
HORIZON_US = 24 * HOUR_US
DRIFT_US = DEFAULT_START_US + 25 * DAY_US


def mean_growth(
    observed: Observed, asked: NDArray[np.int64], members: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the growth of the neighbours and of the videos themselves. Only ``members`` (V,) are in the bank."""
    data = observed.data
    until_us, published = observed.data.last_us() or 0, data.published_us
    known = curves(observed.metric, observed.totals, published, until_us, continuous=observed.continuous)
    known.lengths[~members] = 0
    now = published[asked] + AGE_US
    value = observed.count_at(asked, now + HORIZON_US)[:, None]
    samples = read_samples(observed, asked, now, horizon_us=np.full((len(asked), 1), HORIZON_US, np.int64), value=value)
    content = np.zeros((len(data.videos), 4), np.float32)
    tokens = token_sequences(observed, until_us)
    objective: Any = SimpleNamespace(corpus=SimpleNamespace(tokens=tokens), every_content=lambda: content)
    video, bucket, _ = trajectory_cuts(known)
    shape = shapes(tokens, video, bucket, metric_types("views", data.types))
    growth_us = growth_horizons_us(7 * HORIZON_US)
    known = replace(known, base=fit_base(known, growth_us))
    space = fit_projection(
        TrajectorySpace.around(shape, bucket), shape, residuals(known, growth_us, video, bucket), video, bucket, 0
    )
    bank = PointInTimeBank.of(observed, known, space, objective, TrainConfig(), 7 * HORIZON_US)
    sample_set = SampleSet(samples, np.zeros((len(asked), N_CREATOR), np.float32))
    found = bank.nearest(sample_set, bank.candidates(sample_set, lambda n: None), 0.0)
    # Growth over max_horizon * 24 / 168 is the fourth of the neighbours' horizons.
    growth, is_known = found.features[..., 3] * 2, found.features[..., N_GROWTH + 3] * found.mask
    return (growth * is_known).sum(1) / np.maximum(is_known.sum(1), 1e-9), samples.growth[:, 0]


@pytest.fixture(scope="module")
def shaped(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    folder: Path = tmp_path_factory.mktemp("shaped") / "data"
    simulate(folder, videos=700, seed=4, days=50, shapes=8, drift_us=DRIFT_US)
    return Observed.of(load_dataset(folder), "views")


def test_neighbours_of_the_same_shape_forecast_the_growth(shaped: Observed) -> None:
    published = shaped.data.published_us
    asked = np.flatnonzero((published > DEFAULT_START_US + 15 * DAY_US) & (published < DRIFT_US))
    forecast, growth = mean_growth(shaped, asked, np.ones(len(published), np.bool_))
    assert np.corrcoef(forecast, growth)[0, 1] > 0.6


def test_a_newer_bank_helps_after_a_drift(shaped: Observed) -> None:
    published = shaped.data.published_us
    asked = np.flatnonzero((published > DRIFT_US + 10 * DAY_US) & (published < DRIFT_US + 20 * DAY_US))
    frozen, growth = mean_growth(shaped, asked, published < DRIFT_US)
    newer, _ = mean_growth(shaped, asked, published >= DRIFT_US)
    assert np.corrcoef(frozen, growth)[0, 1] < -0.3
    assert np.corrcoef(newer, growth)[0, 1] > 0.6
