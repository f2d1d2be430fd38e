"""Forecasts stay within the growth seen in training, for any history."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.forecasts.extremes import breaches
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.history import History, Series
from model.engagement.video import Video
from model.forecast import Forecast, Request
from model.forecaster import Forecaster
from model.quantiles.head import HIGH, LOW, MEDIAN, N_GRID, grid_s
from model.quantiles.support import N_AGES, N_LEVELS, Support, support_row
from tests.conftest import Mini
from tests.model.histories import NOW_US, artificial, series

_WEEK_S = 7 * 86_400.0


@pytest.fixture(scope="module")
def forecaster(mini: Mini) -> Iterator[Forecaster]:
    with closing(Forecaster.load(mini.bundle, device="cpu")) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def seen(mini: Mini) -> Observed:
    return Observed.of(load_dataset(mini.data, before_us=mini.as_of_us), "view")


def forecast_of(forecaster: Forecaster, age_us: int, **found: Series) -> Forecast:
    longest = forecaster.manifest.max_horizon_us
    request = Request(
        Video("v", NOW_US - age_us), History(found), NOW_US, (HOUR_US, min(24 * HOUR_US, longest), longest)
    )
    return forecaster.forecast([request])[0]


def cells(mode: str, ages_s: list[float], counts: list[int]) -> Series:
    return series(mode, (np.array(ages_s) * SECOND_US).astype(np.int64), np.array(counts))  # type: ignore[arg-type]


def growth_of(answer: Forecast) -> np.ndarray:
    return np.log2((1 + answer.quantiles) / (1 + answer.value_now))


def test_medians_of_artificial_histories_stay_within_the_support(forecaster: Forecaster, seen: Observed) -> None:
    found, worst = breaches(forecaster, seen, list(artificial(forecaster.manifest.types, 1400, seed=3)))
    assert not found, found[:3]
    assert worst <= 1


def test_without_the_bound_medians_leave_the_support(
    forecaster: Forecaster, seen: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Trees and the simple member repeat what training saw, so only the network can leave it.
    model = next(iter(forecaster.metrics.values()))
    monkeypatch.setattr(model, "trees", None)
    monkeypatch.setattr(model, "_simple", None)
    monkeypatch.setattr(Support, "bound", lambda self, growth, *_: growth)
    monkeypatch.setattr(
        Support, "largest", lambda self, age_s, count: np.full((len(age_s), N_GRID + 1), 99, np.float32)
    )
    found, worst = breaches(forecaster, seen, list(artificial(forecaster.manifest.types, 1400, seed=3)))
    assert found
    assert worst > 1


def test_steady_views_continue_without_exploding(forecaster: Forecaster) -> None:
    spread = np.linspace(1, 3600, 120).tolist()
    by_events = forecast_of(forecaster, 65 * 60 * SECOND_US, view=cells("events", spread, [1] * 120))
    by_counter = forecast_of(forecaster, 65 * 60 * SECOND_US, view=cells("counters", [3600], [120]))
    for answer in (by_events, by_counter):
        assert 120 <= answer.quantiles[1, MEDIAN] < 12_000
        assert answer.quantiles[2, HIGH] < 120_000
    assert "counters:view" in by_counter.extrapolated
    assert "counters:view" not in by_events.extrapolated


def test_twelve_hours_of_silence_lower_the_growth(forecaster: Forecaster) -> None:
    spread = np.linspace(1, 3600, 120).tolist()
    answer = forecast_of(forecaster, 13 * HOUR_US, view=cells("events", spread, [1] * 120))
    assert growth_of(answer)[0, MEDIAN] < 0.5
    assert growth_of(answer)[1, MEDIAN] < 1.5


def test_a_burst_is_extrapolated_and_gets_a_wide_interval(forecaster: Forecaster) -> None:
    answer = forecast_of(forecaster, HOUR_US, view=cells("events", np.linspace(3500, 3590, 50).tolist(), [2000] * 50))
    assert {"counts", "pace"} <= set(answer.extrapolated)
    low, high = growth_of(answer)[1, [LOW, HIGH]]
    support = forecaster.metrics["view"].support
    day = int(np.searchsorted(grid_s(forecaster.manifest.max_horizon_us / SECOND_US), 86_400.0)) - 1
    # A day lies between two points of the grid.
    usual = support.usual[support_row(np.array([3600.0]))[0], day : day + 2]
    most = support.most[support_row(np.array([3600.0]))[0], 16, day]
    assert low <= usual[:, 0].max() + 0.01
    assert high >= min(usual[:, 1].min(), most) - 0.05


def test_inputs_outside_the_training_range_are_named(forecaster: Forecaster) -> None:
    views = cells("events", [60, 600], [3, 4])
    old = forecast_of(forecaster, 6 * 365 * 24 * HOUR_US, view=cells("events", [60, 6e7], [3, 4]))
    assert "age" in old.extrapolated
    likes = forecast_of(forecaster, HOUR_US, view=views, like=cells("events", [60], [10**9]))
    assert "counts:like" in likes.extrapolated
    assert forecast_of(forecaster, HOUR_US).extrapolated == []


def test_few_training_histories_are_extrapolated(forecaster: Forecaster, seen: Observed) -> None:
    from index_builder.bundles.forecast import histories
    from model.engagement.rows import cells_at

    v = np.arange(len(seen.data.videos))
    named: Counter[str] = Counter()
    for age_h in (0.5, 3, 24):
        now = seen.data.published_us[v] + int(age_h * HOUR_US)
        known = histories(
            cells_at(seen.events, seen.counters, v, now, seen.data.published_us[v], len(seen.data.types)),
            seen.data.types,
        )
        requests = [Request(seen.data.videos[i], known[i], int(now[i]), (HOUR_US,)) for i in v]
        for answer in forecaster.forecast(requests, explain=False):
            named.update(answer.extrapolated)
    assert sum(named.values()) < 0.05 * 3 * len(v), named


def samples(n: int, growth: float) -> Support:
    rng = np.random.default_rng(0)
    age_s = np.exp(rng.uniform(np.log(600), np.log(6e5), n))
    value = np.floor(10 ** rng.uniform(0, 4, n))
    horizon = np.exp(rng.uniform(np.log(60), np.log(_WEEK_S), (n, 3)))
    grown = growth * horizon / _WEEK_S * rng.random((n, 3))
    summary = np.zeros((n, 60), np.float32)
    none = np.zeros(n, bool)
    return Support.fit(np.arange(n) // 4, age_s, value, none, summary, horizon, grown, np.ones((4, 2), bool), _WEEK_S)


def test_quantiles_stay_ordered_within_the_bound() -> None:
    support = samples(2000, 3.0)
    rng = np.random.default_rng(1)
    growth = np.maximum.accumulate(np.sort(rng.exponential(4, (50, N_GRID + 1, 8)), axis=-1), axis=1)
    age_s, count = np.exp(rng.uniform(1, 16, 50)), 10 ** rng.uniform(0, 12, 50)
    for far in (False, True):
        bounded = support.bound(growth, age_s, count, np.full(50, far), _WEEK_S)
        assert (np.diff(bounded[..., 1:], axis=-1) >= 0).all()
        assert (np.diff(bounded, axis=1) >= 0).all()
        assert (bounded[:, 0] == 0).all()
        assert (bounded[..., [0, 1 + MEDIAN]] <= support.largest(age_s, count)[..., None] + 1e-6).all()
        assert (bounded[..., -1] <= support.largest(age_s, count) + support.margin + 1e-6).all()


def test_growth_within_the_bound_is_not_changed() -> None:
    support = samples(2000, 3.0)
    growth = np.zeros((5, N_GRID + 1, 8)) + np.linspace(0, 1e-4, N_GRID + 1)[None, :, None]
    growth = growth * np.array([1.0, 0.4, 0.5, 0.8, 1.0, 1.2, 1.5, 1.6])
    assert np.array_equal(
        support.bound(growth, np.full(5, 3600.0), np.full(5, 10.0), np.zeros(5, bool), _WEEK_S), growth
    )


def test_growth_below_the_shortest_trained_horizon_is_spread_by_log_age() -> None:
    support = replace(samples(2000, 3.0), shortest=20 * 3600.0)
    growth = np.zeros((1, N_GRID + 1, 8)) + np.minimum(np.arange(N_GRID + 1) / 8, 1.0)[None, :, None] * 0.1
    bounded = support.bound(growth, np.array([86_400.0]), np.array([10.0]), np.zeros(1, bool), _WEEK_S)
    horizon_s = grid_s(_WEEK_S)
    early = horizon_s <= 20 * 3600.0
    assert np.allclose(bounded[0, ~early], growth[0, ~early])
    shares = bounded[0, early, 1] / bounded[0, early, 1][-1]
    older = np.log1p(horizon_s[early] / 86_460.0)
    assert np.allclose(shares, older / older[-1])


def test_the_support_is_restored_from_a_bundle() -> None:
    support = samples(400, 2.0)
    again = Support.of(support.arrays())  # type: ignore[arg-type]
    assert again.most.shape == (N_AGES, N_LEVELS, N_GRID + 1)
    for name in ("most", "usual", "ages", "low", "high", "sources"):
        assert np.array_equal(getattr(again, name), getattr(support, name))
    assert again.margin == pytest.approx(support.margin)


def test_the_support_is_finite_with_few_samples() -> None:
    assert np.isfinite(samples(3, 1.0).most).all()
