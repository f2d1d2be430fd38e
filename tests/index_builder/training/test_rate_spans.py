"""The spans that rates are fitted to: what was known, what happened, and what the real forecaster expects."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.training.rate_fit import fit
from index_builder.training.rate_spans import forecast_spans, growth_of_spans, rates_of, spans
from model.bundle import load_bundle
from model.engagement.bins import HOUR_US
from model.features.tokens import LOG_AGE_OFFSET_S
from model.forecaster import Forecaster
from model.rates import HOUR_S, Rates, knot_weights, slope_horizon_s
from tests.conftest import Mini

MOST_AGE_US = 720 * HOUR_US
START_US = 1_760_000_000_000_000


@pytest.fixture(scope="module")
def observed(mini: Mini) -> Observed:
    return Observed.of(load_dataset(mini.data, before_us=mini.as_of_us), "view")


@pytest.fixture(scope="module")
def forecaster(mini: Mini) -> Iterator[Forecaster]:
    with closing(Forecaster.load(mini.bundle, device="cpu")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def read(tmp_path_factory: pytest.TempPathFactory) -> Observed:
    """One video read at 10, 34 and 58 h, its comments not at 34 h, and one video read once."""
    folder = tmp_path_factory.mktemp("read")
    times = [START_US + h * HOUR_US for h in (10, 34, 58, 5)]
    ids = pa.array(["a", "a", "a", "b"])
    pq.write_table(
        pa.table(
            {
                "video_id": pa.array(["a", "b"]),
                "published_at": pa.array([START_US, START_US + HOUR_US], pa.timestamp("us", "UTC")),
            }
        ),
        folder / "videos.parquet",
    )
    pq.write_table(
        pa.table(
            {
                "video_id": ids,
                "time": pa.array(times, pa.timestamp("us", "UTC")),
                "views": pa.array([100, 300, 350, 7]),
                "comments": pa.array([5, None, 9, None], pa.int64()),
            }
        ),
        folder / "counters.parquet",
    )
    return Observed.of(load_dataset(folder), "views")


def test_spans_are_gaps_between_readings_and_from_publication(read: Observed) -> None:
    rng = np.random.default_rng(0)
    until_us = START_US + 60 * HOUR_US
    video, start, end = spans(read, 0, until_us, MOST_AGE_US, rng)
    order = np.lexsort((start, video))
    hours = [((t[order] - START_US) // HOUR_US).tolist() for t in (start, end)]
    assert video[order].tolist() == [0, 0, 0, 1] and hours == [[0, 10, 34, 1], [10, 34, 58, 5]]
    kinds = read.data.types
    found = dict(zip(kinds, growth_of_spans(read, video[order], start[order], end[order]).T.tolist(), strict=True))
    assert found["view"] == [100, 200, 50, 7]
    assert found["comment"][0] == 5 and np.isnan(found["comment"][1:]).all(), (
        "growth is unknown without a reading at both ends"
    )


def test_spans_lie_within_the_given_times(read: Observed, observed: Observed, mini: Mini) -> None:
    rng = np.random.default_rng(0)
    split_us = START_US + 40 * HOUR_US
    assert len(spans(read, 0, split_us, MOST_AGE_US, rng)[0]) == 3
    assert len(spans(read, split_us, START_US + 60 * HOUR_US, MOST_AGE_US, rng)[0]) == 0
    assert len(spans(read, 0, split_us, 9 * HOUR_US, rng)[0]) == 2, "no start is older than the oldest age"
    from_us, until_us = mini.as_of_us - 100 * HOUR_US, mini.as_of_us
    video, start, end = spans(observed, from_us, until_us, MOST_AGE_US, rng)
    assert len(video) > 500
    age = start - observed.data.published_us[video]
    assert (start >= from_us).all() and (end <= until_us).all() and (age >= 0).all() and (age <= MOST_AGE_US).all()
    assert (end - start == np.maximum(HOUR_US, age // 24)).mean() > 0.99
    assert (growth_of_spans(observed, video, start, end) >= 0).all()


def test_a_span_is_forecast_from_what_was_known_at_its_start(forecaster: Forecaster, observed: Observed) -> None:
    video, start, end = spans(
        observed, 0, forecaster.manifest.training["split_us"], MOST_AGE_US, np.random.default_rng(1)
    )
    rows = np.arange(0, len(video), max(len(video) // 40, 1))
    one, three = (
        forecast_spans(forecaster, observed, video[rows], start[rows], end[rows], n_times=m) for m in (None, 3)
    )
    np.testing.assert_array_equal(one.moments.value_now, observed.count_at(video[rows], start[rows]))
    np.testing.assert_array_equal(three.moments.value_now.reshape(-1, 3), one.moments.value_now[:, None].repeat(3, 1))
    length_s = (end - start)[rows] / 1e6
    age_s = (start - observed.data.published_us[video])[rows] / 1e6
    np.testing.assert_allclose(one.moments.age_s, age_s)
    ages_s, hours = three.moments.age_s.reshape(-1, 3), three.hours
    np.testing.assert_allclose(hours.sum(1), length_s / HOUR_S)
    assert (ages_s > age_s[:, None]).all() and (ages_s < (age_s + length_s)[:, None]).all()
    # What is even in log(age + 1 minute) has the same sum over the parts as over the whole span.
    even = (hours / (ages_s + LOG_AGE_OFFSET_S)).sum(1) * HOUR_S
    np.testing.assert_allclose(even, np.log1p(length_s / (age_s + LOG_AGE_OFFSET_S)), rtol=1e-4)
    hour = np.log1p(HOUR_S / (age_s + LOG_AGE_OFFSET_S))
    np.testing.assert_allclose(one.hours[:, 0] * hour, even, rtol=1e-4)


def test_a_bundle_serves_the_rates_that_were_fitted(forecaster: Forecaster, observed: Observed, mini: Mini) -> None:
    video, start, _ = spans(
        observed, 0, forecaster.manifest.training["split_us"], MOST_AGE_US, np.random.default_rng(2)
    )
    rows = np.arange(0, len(video), max(len(video) // 200, 1))
    found = forecast_spans(forecaster, observed, video[rows], start[rows], start[rows] + HOUR_US)
    served = Rates.of(load_bundle(mini.bundle).weights)
    np.testing.assert_allclose(found.served[:, 0], served.expected(found.moments), rtol=1e-3, atol=1e-4)
    longest = forecaster.manifest.max_horizon_us / 1e6
    assert (slope_horizon_s(found.moments.age_s, longest) <= longest).all()


def test_expected_and_real_sums_agree_with_a_real_forecaster(
    forecaster: Forecaster, observed: Observed, mini: Mini
) -> None:
    """On the spans that the rates were fitted to, by age."""
    split_us = forecaster.manifest.training["split_us"]
    video, start, end = spans(observed, 0, split_us, MOST_AGE_US, np.random.default_rng(3))
    found = forecast_spans(forecaster, observed, video, start, end)
    rates = fit(found, found.take(np.zeros(len(video), bool)), (0,))
    expected = found.expected(rates)
    # After a short training the model sees little growth of old videos, and no rate is more than ten times the mean.
    factor = np.einsum("nj,jk->nk", knot_weights(found.moments.age_s), rates.log_factor[0])
    checked = 0
    for low, high in ((0, 1), (1, 3), (3, 8), (8, 24)):
        rows = ~found.moments.cold & (found.moments.age_s >= low * HOUR_S) & (found.moments.age_s < high * HOUR_S)
        for kind in range(len(observed.data.types)):
            if factor[rows, kind].max() < 2 and (real := found.grown[rows, kind].sum()) > 300:
                assert expected[rows, kind].sum() / real == pytest.approx(1, abs=0.15), (low, kind)
                checked += 1
    assert checked >= 4
    own = rates_of(forecaster, observed, split_us, mini.as_of_us, seed=1)["view"]
    least, most = own.bounds
    assert 0.1 <= least <= 1 <= most <= 10
    assert (
        forecaster.manifest.evaluation["rate_factor"] == [pytest.approx(least), pytest.approx(most)]
        or (forecaster.manifest.training["learned_all"])
    )
