"""The reliability of threshold probabilities: right forecasts pass, overconfident ones do not."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

from index_builder.scoring.thresholds import FACTORS, reliability
from model.quantiles.head import QUANTILES


def drawn(spread: float) -> list[dict[str, float]]:
    """The reliability of forecasts whose spread is ``spread`` times the real one."""
    rng = np.random.default_rng(0)
    n = 60_000
    median, sigma = rng.gamma(2.0, 0.6, n), rng.uniform(0.2, 0.8, n)
    now = np.floor(10 ** rng.uniform(3, 6, n))
    y = np.maximum(median + sigma * rng.normal(size=n), 0.0)
    then = np.floor((1 + now) * 2**y - 1)
    normal = np.array([NormalDist().inv_cdf(level) for level in QUANTILES])
    quantiles = np.maximum(median[:, None] + spread * sigma[:, None] * normal, 0.0)
    growth = np.concatenate([median[:, None], quantiles], axis=1)
    return reliability(np.log2((1 + then) / (1 + now)), growth, now)


def test_probabilities_of_right_quantiles_are_reliable() -> None:
    tenths = drawn(1.0)
    assert len(tenths) == 10 and sum(tenth["n"] for tenth in tenths) == 60_000 * len(FACTORS)
    for tenth in tenths:
        assert tenth["from"] <= tenth["probability"] <= tenth["from"] + 0.1
        assert abs(tenth["passed"] - tenth["probability"]) < 0.015, tenth


def test_overconfident_quantiles_are_found() -> None:
    assert max(abs(tenth["passed"] - tenth["probability"]) for tenth in drawn(0.5)) > 0.1
