"""The benchmarks of bins, tideh and rates compare like with like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import model.engagement.rows
import model.features.tokens
from benchmarks.forecasts.bins import expected, grid, split_edges, value
from benchmarks.forecasts.rates import AGES_H, asked, ratio
from benchmarks.forecasts.tideh import TRAINED, WEEK_US, median_error, prepare
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.likelihood import mhp_log_likelihood
from index_builder.evaluation.process_states import tokens_of
from index_builder.samples.exposure import exposure_of
from index_builder.samples.queries import cut_queries
from model.bundle import load_bundle
from model.engagement.bins import EDGES_US, HOUR_US, SECOND_US
from tests.conftest import Mini

pytestmark = pytest.mark.slow


def test_fine_bins_are_nested_in_default_bins_and_the_grid_is_restored() -> None:
    fine = split_edges(16)
    assert np.isin(EDGES_US, fine).all() and (np.diff(fine) >= SECOND_US).all()
    wide = np.diff(EDGES_US) >= 16 * SECOND_US
    assert len(fine) > 16 * wide.sum()
    with pytest.raises(RuntimeError), grid(fine):
        assert model.engagement.rows.EDGES_US is fine and model.features.tokens.EDGES_US is fine  # type: ignore[attr-defined]
        raise RuntimeError
    assert model.engagement.rows.EDGES_US is EDGES_US and model.features.tokens.EDGES_US is EDGES_US  # type: ignore[attr-defined]


def test_both_grids_are_scored_on_the_same_intervals(mini: Mini) -> None:
    observed, bundle = Observed.of(load_dataset(mini.data), "view"), load_bundle(mini.bundle)
    videos = np.arange(15)
    asked = tokens_of(observed, videos, mini.as_of_us)
    same = value(asked, expected(bundle, asked, asked), 1.0, 1.0)
    rows = exposure_of(observed, videos, asked, mini.as_of_us, 720 * HOUR_US)
    scored = mhp_log_likelihood(bundle, asked, rows)
    first_seen = asked.observed[rows.token] & (rows.token >= 0)[:, None]
    assert same == pytest.approx(float(scored[first_seen].mean()), rel=0.02)
    with grid(split_edges(64)):
        own = tokens_of(observed, videos, mini.as_of_us)
    assert len(own.counts) > 1.2 * len(asked.counts)
    np.testing.assert_array_equal(own.counts.sum(0), asked.counts.sum(0))
    gap, active, _ = expected(bundle, own, asked)
    assert gap.shape == active.shape == asked.counts.shape
    assert (gap >= 0).all() and (active > 0).all()
    assert value(asked, (gap, active, expected(bundle, own, asked)[2]), 1.0, 1.0) != same


@pytest.mark.parametrize("other", [None, "weibo_ced"])
def test_training_cascades_end_before_the_test_cascades_begin(
    real_data: Path, tmp_path: Path, other: str | None
) -> None:
    before = load_dataset(real_data / "tideh")
    start = prepare(real_data / "tideh", real_data / other if other else None, tmp_path / "data")
    after = load_dataset(tmp_path / "data")
    now = {v.video_id: int(t) for v, t in zip(after.videos, after.published_us, strict=True)}
    moved = np.array([now[v.video_id] for v in before.videos]) - before.published_us
    # Whole weeks, to within the microsecond that the files' nanoseconds are cut to.
    assert (np.abs(moved - np.round(moved / WEEK_US) * WEEK_US) <= 1).all()
    published = before.published_us + moved
    assert (published[:TRAINED] + 168 * HOUR_US <= start + SECOND_US).all()
    assert (published[TRAINED:] >= start).all() and len(published) == 100
    observed = Observed.of(after, "total")
    asked = cut_queries(observed, np.flatnonzero(after.published_us >= start), (6.0,), (24.0,), np.iinfo(np.int64).max)
    exact = median_error(asked, asked.pairs.growth)
    assert exact == {"age6h+24h": pytest.approx((0.0, 0.0, 0.0), abs=1e-9)}
    assert median_error(asked, np.zeros(len(asked.video)))["age6h+24h"] == pytest.approx((1.0, 1.0, 1.0))


def test_the_interval_of_a_ratio_is_a_bootstrap_over_videos() -> None:
    rng = np.random.default_rng(0)
    video = np.arange(400).repeat(5)
    real = rng.exponential(1.0, 400).repeat(5) * 10
    middle, low, high = ratio(np.full(len(real), 12.0), real, video)
    assert middle == pytest.approx(12 * len(real) / real.sum())
    # The mean of 400 exponentials, not of 2,000, is known to within 5 %.
    assert np.log(high / low) == pytest.approx(4 * 0.05, rel=0.2)
    assert low < middle < high
    assert ratio(real, real, video) == pytest.approx((1, 1, 1))


@pytest.mark.parametrize("drawn", [False, True])
def test_every_scored_hour_is_completely_observed(mini: Mini, drawn: bool) -> None:
    observed = Observed.of(load_dataset(mini.data), "view")
    video, start, end = asked(observed, np.array([3, 7]), mini.as_of_us, 100 * HOUR_US, drawn=drawn)
    age_h = (start - observed.data.published_us[video]) / HOUR_US
    assert (end - start == HOUR_US).all() and (end <= mini.as_of_us).all() and (age_h <= 100).all()
    assert set(video.tolist()) == {3, 7} and (age_h >= AGES_H[0]).all()
    assert np.isin(age_h, AGES_H).all() != drawn
