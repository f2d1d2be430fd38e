"""Content retrieval uses the most similar videos whose growth was known."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.baselines.content_retrieval import content_retrieval, content_vectors, has_text
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.samples.queries import Queries, cut_queries
from model.bank import EmptyBank
from model.bundle import load_bundle
from model.engagement.bins import HOUR_US
from model.forecaster import Forecaster
from model.growth.curve_kernels import curve_growth
from model.growth.curves import curves
from tests.conftest import Mini


@pytest.fixture(scope="module")
def task(mini: Mini) -> tuple[Forecaster, Observed, Queries]:
    """A forecaster without a bank, the data, and queries of the younger videos."""
    observed = Observed.of(load_dataset(mini.data), "view")
    young = np.flatnonzero(observed.data.published_us >= mini.as_of_us)
    queries = cut_queries(observed, young, (3.0, 12.0), (6.0, 24.0), observed.data.last_us() or 0)
    return Forecaster(load_bundle(mini.bundle), EmptyBank()), observed, queries


def by_hand(content: np.ndarray, observed: Observed, queries: Queries, i: int, k: int) -> float:
    """The growth of one query, computed slowly: every earlier video in order of cosine."""
    published, v, now = observed.data.published_us, queries.video[i], int(queries.now_us[i])
    known = curves(observed.metric, observed.totals, published, now, continuous=True)
    order = np.argsort(-(content @ content[v]), kind="stable")
    growth, weight = [], []
    for j in order.tolist():
        one = np.empty(2)
        horizon = np.array([queries.horizon_us[i]])
        if j != v and published[j] <= published[v]:
            curve_growth(known.ages_us[j], known.values[j], known.lengths[j], now - published[v], horizon, one)
            if np.isfinite(one[0]):
                growth.append(one[0])
                weight.append(np.exp(content[j] @ content[v]))
        if len(growth) == k:
            break
    return float(np.average(growth, weights=weight)) if growth else float("nan")


def test_growth_equals_a_slow_computation(task: tuple[Forecaster, Observed, Queries]) -> None:
    forecaster, observed, queries = task
    assert has_text(observed)
    content = content_vectors(forecaster, observed, np.arange(len(observed.data.videos)))
    found = content_retrieval(forecaster, observed, queries)
    for i in range(0, len(queries.video), 7):
        assert found[i] == pytest.approx(by_hand(content, observed, queries, i, 10), rel=1e-5)
    assert np.isfinite(found).any()


def test_growth_that_ends_after_now_is_not_read(task: tuple[Forecaster, Observed, Queries], mini: Mini) -> None:
    forecaster, observed, queries = task
    early = queries.take(np.flatnonzero(queries.now_us <= np.median(queries.now_us)))
    cut_off = Observed.of(load_dataset(mini.data, before_us=int(early.now_us.max())), "view")
    np.testing.assert_array_equal(
        content_retrieval(forecaster, cut_off, early), content_retrieval(forecaster, observed, early)
    )


def test_the_first_videos_have_no_neighbours(task: tuple[Forecaster, Observed, Queries]) -> None:
    forecaster, observed, _ = task
    first = cut_queries(observed, np.arange(3), (3.0,), (24.0 * 6,), observed.data.last_us() or 0)
    assert int(np.diff(observed.data.published_us[:3]).sum()) < 24 * 6 * HOUR_US
    assert np.isnan(content_retrieval(forecaster, observed, first)).all()


def test_the_block_size_does_not_change_the_growth(
    task: tuple[Forecaster, Observed, Queries], monkeypatch: pytest.MonkeyPatch
) -> None:
    forecaster, observed, queries = task
    whole = content_retrieval(forecaster, observed, queries)
    monkeypatch.setattr("index_builder.baselines.content_retrieval._BLOCK", 5)
    np.testing.assert_allclose(content_retrieval(forecaster, observed, queries), whole, rtol=1e-6)
