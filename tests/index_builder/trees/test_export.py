"""The trees in a bundle equal LightGBM's, also where an input equals a threshold, and a row's result does not depend on its batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index_builder.trees.export import write_trees
from index_builder.trees.fit import FittedTrees
from model.growth.base_growth import N_BASE
from model.growth.curve_kernels import N_GROWTH, NOMINAL_AGES_US
from model.quantiles.head import N_CENTRE
from model.trees import N_COMPONENTS, TreeReader, Trees

lightgbm = pytest.importorskip("lightgbm")


@pytest.fixture(scope="module")
def fitted() -> FittedTrees:
    rng = np.random.default_rng(0)
    x = rng.integers(0, 40, (3000, 6)).astype(np.float32) / 7
    y = np.sin(x[:, 0]) + x[:, 1] * (x[:, 2] > 2) + 0.1 * rng.normal(size=len(x))
    objectives = {"objective": "regression"}, {"objective": "quantile", "alpha": 0.5}
    boosters = tuple(
        lightgbm.train(goal | {"verbose": -1, "num_leaves": 15}, lightgbm.Dataset(x, y), 30) for goal in objectives
    )
    none, base = np.zeros((1, N_COMPONENTS), np.float32), np.zeros((len(NOMINAL_AGES_US), N_GROWTH, N_BASE))
    reader = TreeReader(none, (np.zeros(1, np.float32),) * 2, base, 1, 3600.0)
    return FittedTrees(boosters, np.array([0.5, 0.25], np.float32), reader)


def test_the_graph_equals_the_boosters(fitted: FittedTrees, tmp_path: Path) -> None:
    write_trees(fitted, tmp_path / "trees.onnx")
    # All inputs are multiples of 1/7, so many equal a threshold up to its rounding.
    x = (np.random.default_rng(1).integers(-5, 50, (500, 6)) / 7).astype(np.float32)
    expected = np.stack([booster.predict(x) for booster in fitted.boosters], axis=-1)
    read = Trees(tmp_path / "trees.onnx", fitted.weight, fitted.reader)
    got = read.growth(x)
    assert got.shape == (500, N_CENTRE)
    np.testing.assert_allclose(got, np.maximum(expected, 0), atol=2e-5)
    for n in (1, 3, 17):
        np.testing.assert_array_equal(read.growth(x[:n]), got[:n])
