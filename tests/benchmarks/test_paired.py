"""The paired intervals of the ablation: of the right scores, and of the difference, not of either model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.forecasts.paired import KEY, differences
from index_builder.scoring.metrics import nmse, pinball


def test_differences_match_the_scores_and_their_intervals_are_narrow_for_similar_errors(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n = 600
    now, y = rng.integers(100, 9000, n), rng.normal(2, 1, n)
    keys = pd.DataFrame({name: np.arange(n) for name in KEY} | {"video_id": [f"v{i // 3}" for i in range(n)]})
    answers = keys.assign(value_now=now, value_target=np.exp2(y) * (1 + now) - 1)
    answers.to_parquet(tmp_path / "answers.parquet")
    error = rng.normal(0, 0.5, n)
    median = {"one": y + error, "two": y + 1.1 * error, "far": y + rng.normal(0, 0.55, n)}
    for name, m in median.items():
        quantiles = {
            f"q{level}": np.exp2(m + shift) * (1 + now) - 1 for level, shift in ((0.1, -1), (0.5, 0), (0.9, 1))
        }
        keys.assign(**quantiles).to_parquet(tmp_path / name)
    two, far = (differences(tmp_path / "answers.parquet", tmp_path / "one", tmp_path / name) for name in ("two", "far"))
    losses = [
        np.mean([pinball(y, m + shift, level) for level, shift in ((0.1, -1), (0.5, 0), (0.9, 1))])
        for m in (median["one"], median["two"])
    ]
    assert np.isclose(two["nMSE"].value, nmse(y, median["two"]) - nmse(y, median["one"]))
    assert np.isclose(two["pinball"].value, losses[1] - losses[0])
    assert 0 < two["nMSE"].low < two["nMSE"].value < two["nMSE"].high
    assert far["nMSE"].high - far["nMSE"].low > 2 * (two["nMSE"].high - two["nMSE"].low)
