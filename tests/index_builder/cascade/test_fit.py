"""The power-law Hawkes baseline: its kernel, what it may read, and its forecasts of self-exciting cascades."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from index_builder.baselines.simple import GrowthFactor
from index_builder.cascade.fit import PowerLawHawkes, hawkes_growth, kernel_matrix
from index_builder.cascade.observations import cascades
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.samples.queries import Queries, cut_queries
from index_builder.scoring.metrics import nmse
from model.engagement.bins import HOUR_US
from tests.conftest import Mini

AGES_H, HORIZONS_H = (3.0, 12.0), (12.0, 48.0)


@dataclass(frozen=True)
class Task:
    """All data, queries with answers before the as-of time, queries of younger videos, and a fit."""

    observed: Observed
    past: Queries
    young: Queries
    fitted: PowerLawHawkes


@pytest.fixture(scope="module")
def task(mini: Mini) -> Task:
    """Make the fit short."""
    observed = Observed.of(load_dataset(mini.data), "total")
    published = observed.data.published_us
    past = cut_queries(observed, np.flatnonzero(published < mini.as_of_us), AGES_H, HORIZONS_H, mini.as_of_us)
    young = cut_queries(
        observed, np.flatnonzero(published >= mini.as_of_us), AGES_H, HORIZONS_H, observed.data.last_us() or 0
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("index_builder.cascade.fit.STEPS", 40)
        return Task(observed, past, young, PowerLawHawkes().fit(observed, past))


def test_the_kernel_conserves_children() -> None:
    edges = torch.tensor([0.0, 10.0, 25.0, 100.0, 1000.0, 40_000.0], dtype=torch.float64)
    c, theta = torch.tensor(300.0).double(), torch.tensor(0.242).double()
    kernel = kernel_matrix(edges, c, theta)
    assert (kernel.triu(1) == 0).all() and (kernel >= 0).all()
    # Sum over all bins for an event in the first bin: its children by the last edge, averaged over where it is in the bin.
    at = torch.linspace(0.005, 9.995, 1000, dtype=torch.float64)
    by_end = (1 - (1 + (edges[-1] - at) / c) ** -theta).mean()
    torch.testing.assert_close(kernel[:, 0].sum(), by_end, rtol=1e-5, atol=0)


def test_only_counts_up_to_now_are_read(task: Task) -> None:
    observed, young = task.observed, task.young
    for part in cascades(observed, young, 7):
        now = part.published_s * 1e6 + part.edges[part.past] * 1e6
        videos = np.unique(young.video[part.rows])
        want = observed.count_at(videos, now.round().long().numpy())
        np.testing.assert_array_equal(part.counts.sum(1).numpy(), want)
        assert len(part.counts) <= 7


def test_forecasts_beat_a_growth_factor(task: Task) -> None:
    past, young = task.past, task.young
    growth = task.fitted.predict(task.observed, young)
    assert growth.shape == (len(young.video),) and (growth >= 0).all()
    y = young.pairs.growth
    assert nmse(y, growth) < 0.9 * nmse(y, GrowthFactor().fit(past.pairs).predict(young.pairs))
    assert 0.05 <= task.fitted.constants["theta"] <= 0.8


def test_growth_increases_with_the_horizon(task: Task) -> None:
    one = task.young.take(np.flatnonzero(task.young.horizon_us == 12 * HOUR_US))
    longer = replace(one, pairs=replace(one.pairs, horizon_s=one.pairs.horizon_s * 4))
    assert (task.fitted.predict(task.observed, longer) > task.fitted.predict(task.observed, one)).all()


def test_rows_after_now_do_not_change_a_forecast(task: Task, mini: Mini) -> None:
    newest = int(task.young.now_us.max())
    cut_off = Observed.of(load_dataset(mini.data, before_us=newest), "total")
    np.testing.assert_array_equal(
        task.fitted.predict(cut_off, task.young), task.fitted.predict(task.observed, task.young)
    )


def test_many_cascades_correct_the_forecast(task: Task, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index_builder.cascade.fit.STEPS", 1)
    plain = PowerLawHawkes().fit(task.observed, task.past).predict(task.observed, task.past)
    monkeypatch.setattr("index_builder.cascade.fit._MIN_CORRECTED_CASCADES", 20)
    corrected = PowerLawHawkes().fit(task.observed, task.past).predict(task.observed, task.past)
    assert nmse(task.past.pairs.growth, corrected) < 0.9 * nmse(task.past.pairs.growth, plain)
    assert (corrected >= 0).all()


def test_without_training_videos_there_is_no_forecast(task: Task, mini: Mini) -> None:
    nobody = np.zeros(0, np.int64)
    assert np.isnan(hawkes_growth(task.observed, task.young, nobody, AGES_H, HORIZONS_H, mini.as_of_us)).all()


def test_real_cascades_are_forecast_better_than_by_the_median_factor(
    real_data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of the first 60 cascades are forecast from the other half."""
    monkeypatch.setattr("index_builder.cascade.fit.STEPS", 60)
    observed = Observed.of(load_dataset(real_data / "tideh"), "total")
    never = np.iinfo(np.int64).max
    even, odd = np.arange(0, 60, 2), np.arange(1, 60, 2)
    asked = cut_queries(observed, odd, (6.0,), (24.0, 120.0), never)
    growth = hawkes_growth(observed, asked, even, (6.0,), (24.0, 120.0), never, of_increment=True)
    past = cut_queries(observed, even, (6.0,), (24.0, 120.0), never)
    now = 1 + asked.pairs.value_now
    truth = now * (np.exp2(asked.pairs.growth) - 1)
    factor = np.zeros(len(truth))
    for horizon_us in np.unique(asked.horizon_us):
        ratio = np.exp2(past.pairs.growth[past.horizon_us == horizon_us]) - 1
        factor[asked.horizon_us == horizon_us] = np.median(ratio)
    errors = [np.abs(np.log((1 + now * f) / (1 + truth))).mean() for f in (np.exp2(growth) - 1, factor)]
    assert errors[0] < 0.9 * errors[1]
