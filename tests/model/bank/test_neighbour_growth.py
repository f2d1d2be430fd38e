"""What the trees read of neighbours: weighted means of their growth over the asked horizon."""

from __future__ import annotations

import numpy as np
import pytest

from model.bank.neighbour_growth import FOCUS, HALF_LIVES_DAYS, N_MEANS, N_NEAR, near_growth, neighbour_means
from model.bank.neighbours import KNOWN, N_NEIGHBOUR, RECENCY, RESIDUAL, SIMILARITY
from model.growth.curve_kernels import N_GROWTH

GROWTH_S = np.array([1, 6, 12, 24, 48, 72, 120, 168]) * 3600.0
HORIZONS_S = np.array([[3600.0, 24 * 3600.0, 168 * 3600.0]])
BASE = np.linspace(0.1, 0.8, N_GROWTH)[None]
OF_CREATOR = np.full((1, N_GROWTH), 0.25)
FIRST, SECOND = slice(0, 3), slice(3, 6)


def neighbour(growth: float, residual: float, similarity: float, days: float, known: int = N_GROWTH) -> np.ndarray:
    row = np.zeros(N_NEIGHBOUR, np.float32)
    row[:known] = growth / 2
    row[KNOWN : KNOWN + known] = 1
    row[RESIDUAL : RESIDUAL + known] = residual
    row[SIMILARITY], row[RECENCY] = similarity, np.log1p(days) / 3
    return row


def near(*neighbours: np.ndarray, horizons_s: np.ndarray = HORIZONS_S) -> np.ndarray:
    features = np.stack(neighbours)[None]
    return near_growth(features, np.ones(features.shape[:2], np.float32), BASE, OF_CREATOR, horizons_s, GROWTH_S)[0]


def test_means_are_weighted_by_similarity_and_recency() -> None:
    read = near(neighbour(1.0, 0.5, 0.9, 0), neighbour(3.0, -0.5, 0.4, 14))
    for columns, half_life in zip((FIRST, SECOND), HALF_LIVES_DAYS, strict=True):
        weight = np.exp(FOCUS * np.array([0.9, 0.4])) * 0.5 ** (np.array([0, 14]) / half_life)
        growth, forecast, total = read[1, columns]
        assert growth == pytest.approx(weight @ [1, 3] / weight.sum(), rel=1e-4)
        assert forecast == pytest.approx(BASE[0, 3] + weight @ [0.5, -0.5] / weight.sum(), rel=1e-4)
        assert total == pytest.approx(np.log1p(weight.sum()), rel=1e-4)
    assert read[1, -4] == pytest.approx(BASE[0, 3])
    assert read[1, -3] == pytest.approx(BASE[0, 3] + 0.25)
    assert read[1, -1] == 2


def test_an_unknown_growth_has_no_weight() -> None:
    read = near(neighbour(1.0, 0.5, 0.5, 1), neighbour(9.0, 0.5, 0.9, 1, known=4))
    assert read[0, 0] > 5 and read[0, -1] == 2
    assert read[2, 0] == pytest.approx(1.0) and read[2, -1] == 1


def test_without_known_growth_the_base_forecast_stands() -> None:
    read = near(neighbour(1.0, 0.5, 0.5, 1, known=0))
    np.testing.assert_allclose(read[:, [0, 1, 3, 4]], np.tile(BASE[0, [0, 3, 7], None], 4), rtol=1e-5)
    nobody = near_growth(
        np.zeros((1, 0, N_NEIGHBOUR), np.float32), np.zeros((1, 0), np.float32), BASE, OF_CREATOR, HORIZONS_S, GROWTH_S
    )
    assert nobody.shape == (1, 3, N_NEAR)
    np.testing.assert_allclose(nobody[0][:, [2, 5, -2, -1]], 0)


def test_horizons_between_are_interpolated() -> None:
    rising = neighbour(1.0, 0.0, 0.5, 1)
    rising[:N_GROWTH] = np.arange(N_GROWTH) / 2
    read = near(rising, horizons_s=np.array([[60.0, 36 * 3600.0]]))
    assert 0 <= read[0, 0] < 0.1
    assert 3 < read[1, 0] < 4


def test_a_row_does_not_depend_on_the_others() -> None:
    rng = np.random.default_rng(0)
    features = rng.random((50, 10, N_NEIGHBOUR)).astype(np.float32)
    mask = (rng.random((50, 10)) < 0.7).astype(np.float32)
    base, horizons = rng.random((50, N_GROWTH)), rng.uniform(60, 6e5, (50, 5))
    whole, means = near_growth(features, mask, base, base, horizons, GROWTH_S), neighbour_means(features, mask)
    assert means.shape == (50, N_MEANS)
    for i in range(0, 50, 7):
        one = slice(i, i + 1)
        np.testing.assert_array_equal(
            near_growth(features[one], mask[one], base[one], base[one], horizons[one], GROWTH_S)[0], whole[i]
        )
        np.testing.assert_array_equal(neighbour_means(features[one], mask[one])[0], means[i])
