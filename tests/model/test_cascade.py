"""The growth that a self-exciting cascade expects: the compiled kernel equals the fit, and holds for any history."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from index_builder.cascade.fit import PowerLawHawkes, fit_cascade
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.samples.queries import cut_queries
from index_builder.samples.samples import read_samples
from model.bundle import load_bundle
from model.cascade import CONSTANTS, UNCORRECTED, Cascade, bin_edges, followers_of
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.cells import EVENT_MODE, Cells
from model.features.tokens import Tokens, tokenize
from model.forecaster import Forecaster
from model.quantiles.head import N_GRID, grid_s, on_grid_at
from tests.conftest import Mini

HORIZON_US = 72 * HOUR_US
USUAL = dict.fromkeys(CONSTANTS, 0.0) | {
    "log_c": np.log(300),
    "theta": 0.242,
    "beta": 0.5,
    "log_tau_h": 4.0,
    "log_kappa": -2.0,
    "log_weight": -1.0,
    "trend": 0.3,
    "log_mark_prior": 2.0,
    "cos_day": 0.3,
    "sin_half": -0.2,
    "usual_mark": 1.0,
}


@pytest.fixture(scope="module")
def seen(mini: Mini) -> Observed:
    """Everything observed in the small data set."""
    return Observed.of(load_dataset(mini.data), "total")


def test_the_kernel_equals_the_fit(seen: Observed, mini: Mini, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("index_builder.cascade.fit.STEPS", 20)
    videos = np.flatnonzero(seen.data.published_us < mini.as_of_us)
    queries = cut_queries(seen, videos, (3.0, 12.0), (12.0, 72.0), mini.as_of_us)
    fit = PowerLawHawkes(of_increment=True).fit(seen, queries)
    by_fit = fit.predict(seen, queries)
    order = np.lexsort((queries.now_us, queries.video))
    queries, by_fit = queries.take(order), by_fit[order]
    samples = read_samples(
        seen,
        queries.video,
        queries.now_us,
        horizon_us=queries.horizon_us[:, None],
        value=np.full((len(order), 1), np.nan),
        cascade=fit.fitted(HORIZON_US / SECOND_US),
    )
    by_kernel = on_grid_at(samples.expected, samples.horizon_s, HORIZON_US / SECOND_US)[:, 0]
    # They differ slightly: tokens are a sixtieth of the age wide and the fit reads single events, and the grid is interpolated.
    assert np.abs(by_kernel - by_fit).mean() < 0.02 * by_fit.mean()
    assert np.corrcoef(by_kernel, by_fit)[0, 1] > 0.999


def test_without_observations_no_cascade_is_fitted(seen: Observed) -> None:
    assert fit_cascade(seen, int(seen.data.published_us[0]), 720 * HOUR_US, HORIZON_US) is None


def test_bins_cover_the_age_and_the_horizon() -> None:
    for age_s, horizon_s in ((0.0, 60.0), (1.0, 3600.0), (86_400.0, 604_800.0), (2_592_000.0, 604_800.0)):
        edges, past = bin_edges(age_s, horizon_s)
        assert edges[0] == 0 and edges[past] == age_s and edges[-1] == age_s + horizon_s
        assert (np.diff(edges) > 0).all()


def _tokens(bins: list[int], values: list[int], now_s: float) -> Tokens:
    n = len(bins)
    cells = Cells(
        np.array([0, n]),
        np.array(bins, dtype=np.int64),
        np.zeros(n, np.int64),
        np.array(values, dtype=np.int64),
        np.full(n, EVENT_MODE),
        np.zeros(n, np.int64),
    )
    return tokenize(cells, np.zeros(1, np.int64), np.array([round(now_s * SECOND_US)]), 1)


def _grown(tokens: Tokens, age_s: float, published_s: float = 0.0, **changed: float) -> np.ndarray:
    constants = np.array([(USUAL | changed)[name] for name in CONSTANTS])
    cascade = Cascade(constants, UNCORRECTED, HORIZON_US / SECOND_US)
    growth, numbers = cascade.growth(tokens, np.array([age_s]), (0,), np.array([1000.0]), np.array([published_s]))
    assert np.isfinite(numbers).all()
    return np.asarray(growth[0], dtype=np.float64)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 10_000_000)), max_size=30, unique_by=lambda cell: cell[0]),
    st.floats(0, 30 * 86_400.0),
    st.floats(0, 2e9),
)
def test_growth_is_finite_and_never_falls(cells: list[tuple[int, int]], after_s: float, published_s: float) -> None:
    from model.engagement.bins import bin_end_us

    cells = sorted(cells)
    newest_s = float(bin_end_us(np.array([cells[-1][0]]))[0]) / SECOND_US if cells else 0.0
    now_s = round(newest_s + after_s, 3)
    growth = _grown(_tokens([b for b, _ in cells], [v for _, v in cells], now_s), now_s, published_s)
    assert growth.shape == (N_GRID + 1,) and growth[0] == 0
    assert np.isfinite(growth).all() and (np.diff(growth) >= 0).all()


def test_silence_lowers_and_a_burst_raises_the_expected_growth() -> None:
    from model.engagement.bins import EDGES_US

    at = int(np.searchsorted(EDGES_US, 1800 * SECOND_US)) - 1
    early, late = _tokens([3], [200], 3600.0), _tokens([at], [200], 3600.0)
    assert _grown(late, 3600.0)[-1] > _grown(early, 3600.0)[-1]
    assert _grown(early, 3600.0)[-1] > _grown(_tokens([3], [200], 86_400.0), 86_400.0)[-1] > 0


def test_followers_of_the_creator_raise_the_expected_growth() -> None:
    no_tokens = _tokens([], [], 60.0)
    assert _grown(no_tokens, 60.0, log_post=6.0)[-1] > _grown(no_tokens, 60.0, log_post=2.0)[-1]


def test_the_correction_scales_the_growth() -> None:
    tokens = _tokens([10], [50], 3600.0)
    constants = np.array([USUAL[name] for name in CONSTANTS])
    plain = Cascade(constants, UNCORRECTED, HORIZON_US / SECOND_US)
    doubled = replace(plain, correction=2 * UNCORRECTED)
    growth = [c.growth(tokens, np.array([3600.0]), (0,), np.zeros(1), np.zeros(1))[0] for c in (plain, doubled)]
    np.testing.assert_allclose(growth[1], 2 * growth[0], rtol=1e-5)


def test_values_are_interpolated_between_grid_points() -> None:
    grid = grid_s(1000.0)
    values = np.log1p(grid / 60.0)[None].astype(np.float32)
    horizons_s = np.array([[0.0, 17.0, 333.0, 1000.0, 2000.0]])
    expected = np.log1p(np.minimum(horizons_s, 1000.0) / 60.0)
    np.testing.assert_allclose(on_grid_at(values, horizons_s, 1000.0), expected, atol=1e-5)


def test_a_bundle_of_events_has_a_cascade(mini_bundle: Path) -> None:
    loaded = load_bundle(mini_bundle)
    assert loaded.manifest.parts.cascade
    assert loaded.weights["cascade.constants"].shape == (len(CONSTANTS),)
    assert followers_of([]).shape == (0,)
    forecaster = Forecaster.load(mini_bundle, device="cpu")
    assert forecaster.manifest.metric == "view"
    forecaster.close()
