from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index_builder.scoring.metrics import average_ranks, cover, intervals, mae, nmse, pinball, score, spearman, width
from tests import patience

NAMES = {"nmse": "nMSE", "mae": "MAE", "src": "SRC", "cover": "cover", "width": "width", "pinball": "pinball"}


def test_scores_equal_a_hand_computation() -> None:
    y = np.array([0.0, 1.0, 2.0, 3.0])
    f = np.array([0.0, 1.0, 2.0, 5.0])
    assert nmse(y, f) == pytest.approx((4 / 4) / 1.25)
    assert mae(y, f) == 0.5
    assert spearman(y, f) == pytest.approx(1)
    assert spearman(y, -f) == pytest.approx(-1)
    assert pinball(y, f, 0.5) == pytest.approx(0.25)
    assert pinball(y, f, 0.9) == pytest.approx(0.1 * 2 / 4)
    assert pinball(y, f - 2, 0.9) == pytest.approx(0.9 * 6 / 4)
    assert cover(y, f - 0.5, f) == 0.75
    assert width(f - 0.5, f) == 0.5


def test_forecasting_the_mean_has_an_nmse_of_one() -> None:
    y = np.random.default_rng(0).normal(size=100)
    assert nmse(y, np.full(100, y.mean())) == pytest.approx(1)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=30))
def test_average_ranks_equal_pandas(values: list[int]) -> None:
    x = np.array(values, dtype=float)
    assert average_ranks(x).tolist() == pd.Series(x).rank().tolist()


def test_undefined_scores_are_not_errors() -> None:
    one = np.ones(1)
    assert np.isnan(nmse(one, one)) and np.isnan(spearman(one, one))
    assert nmse(np.ones(3), np.zeros(3)) == np.inf
    assert np.isnan(spearman(np.arange(3.0), np.ones(3)))
    point = score(np.arange(3.0), np.arange(3.0)[:, None])
    assert point.n == 3 and point.nmse == 0 and np.isnan([point.cover, point.width, point.pinball]).all()


def forecasts(n: int) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    now = rng.integers(0, 10_000, n)
    target = now + rng.integers(0, 5000, n)
    middle = now * 2.0 ** rng.uniform(0, 1, n).round(1)
    frame = pd.DataFrame({"video_id": [f"v{i}" for i in range(n)], "metric": "views", "value_now": now})
    frame["now"] = pd.Timestamp("2026-01-01", tz="UTC")
    frame["target_time"] = pd.Timestamp("2026-01-02", tz="UTC")
    frame["cell"] = np.where(rng.random(n) < 0.4, "a", "b")
    frame["value_target"] = target
    frame["q0.1"], frame["q0.5"], frame["q0.9"] = middle * 0.8, middle, middle * 1.3
    return frame


def growth(frame: pd.DataFrame, column: str) -> np.ndarray:
    return np.log2((1 + frame[column]) / (1 + frame.value_now)).to_numpy(float)


def test_scores_equal_the_benchmark_script(real_data: Path, tmp_path: Path) -> None:
    script = real_data.parent / "benchmark" / "score.py"
    if not script.is_file():
        pytest.fail(f"no {script}") if os.environ.get("CI") == "true" else pytest.skip(f"no {script}")
    frame = forecasts(500)
    frame.drop(columns=["q0.1", "q0.5", "q0.9"]).to_parquet(tmp_path / "answers.parquet")
    frame.drop(columns=["cell", "value_target", "value_now"]).to_parquet(tmp_path / "forecasts.parquet")
    out = tmp_path / "out.json"
    command = [sys.executable, str(script), "answers.parquet", "forecasts.parquet", "--json", str(out)]
    patience.run(command, cwd=tmp_path, check=True, capture_output=True, seconds=120)
    cells = json.loads(out.read_text())["cells"]
    for cell, rows in {"a": frame[frame.cell == "a"], "b": frame[frame.cell == "b"], "pooled": frame}.items():
        ours = score(
            growth(rows, "value_target"), np.stack([growth(rows, c) for c in ("q0.5", "q0.1", "q0.5", "q0.9")], axis=1)
        )
        assert ours.n == cells[cell]["n"]
        for name, theirs in NAMES.items():
            assert getattr(ours, name) == pytest.approx(cells[cell][theirs], rel=1e-12), (cell, name)


def test_intervals_contain_the_score_and_depend_only_on_the_seed() -> None:
    frame = forecasts(400)
    y, lo, m, hi = (growth(frame, c) for c in ("value_target", "q0.1", "q0.5", "q0.9"))
    forecast = np.stack([m + 0.01, lo - 0.1, lo, (lo + m) / 2, m, (m + hi) / 2, hi, hi + 0.1], axis=1)
    video = np.arange(400)
    found = intervals(video, y, forecast, seed=3)
    whole = score(y, forecast)
    for name, (low, high) in found.items():
        assert low < getattr(whole, name) < high, name
    assert found == intervals(video, y, forecast, seed=3)
    assert found != intervals(video, y, forecast, seed=4)


def test_the_mean_is_scored_by_squares_and_the_median_by_absolute_errors() -> None:
    y = np.random.default_rng(2).normal(size=200)
    quantiles = y[:, None] + np.array([-3, -2, -1, 0.5, 1, 2, 3])
    found = score(y, np.concatenate([y[:, None] * 2, quantiles], axis=1))
    assert found.nmse == pytest.approx(nmse(y, 2 * y)) and found.mae == pytest.approx(0.5)
    assert found.src == pytest.approx(1)
    assert (found.cover, found.cover50, found.cover90) == (1, 1, 1)
    assert found.pinball == pytest.approx(np.mean([0.1 * 2, 0.5 * 0.5, 0.1 * 2]))


def test_rows_of_one_video_are_drawn_together() -> None:
    rng = np.random.default_rng(0)
    y = np.repeat(rng.normal(size=30), 20)
    m = y + np.repeat(rng.normal(size=30), 20)
    order = rng.permutation(600)
    video = np.repeat(np.arange(30) * 7, 20)

    def spread(owner: np.ndarray) -> float:
        low, high = intervals(owner[order], y[order], m[order, None], draws=300)["mae"]
        return high - low

    # 20 equal rows for each video: the right interval is sqrt(20) = 4.5 times that of independent rows.
    assert 3 < spread(video) / spread(np.arange(600)) < 6


def test_a_point_forecast_has_only_point_scores() -> None:
    y = np.random.default_rng(0).normal(size=50)
    found = intervals(np.arange(50), y, y[:, None] + 1, draws=20)
    assert np.isfinite(found["nmse"]).all() and np.isnan(found["cover"]).all()
