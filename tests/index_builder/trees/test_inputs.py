"""The trees read the same numbers in training as in the service, and their forecasts reach the answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index_builder.bundles.forecast import histories
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.neighbours.neighbour_inputs import NeighbourInputs
from index_builder.samples.network_inputs import SampleSet, content_inputs
from index_builder.samples.samples import read_samples
from index_builder.trees.fit import read_inputs
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.rows import cells_at
from model.forecast import Request
from model.forecaster import Forecaster
from model.growth.curves import curves
from model.quantiles.head import grid_s
from model.trees import STEPS, TREE_HORIZONS
from tests.conftest import Mini

HORIZON_US = 24 * HOUR_US


def requests_of(observed: Observed, video: NDArray[np.int64], now: NDArray[np.int64]) -> list[Request]:
    data = observed.data
    cells = cells_at(observed.events, observed.counters, video, now, data.published_us[video], len(data.types))
    return [
        Request(data.videos[v], history, int(t), (HORIZON_US,))
        for v, history, t in zip(video.tolist(), histories(cells, data.types), now.tolist(), strict=True)
    ]


def recorded(seen: list[Any], function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return the function, which also appends its argument to ``seen``."""

    def call(argument: Any) -> Any:
        seen.append(argument)
        return function(argument)

    return call


@pytest.fixture(scope="module")
def observed(mini: Mini) -> Observed:
    return Observed.of(load_dataset(mini.data, before_us=mini.as_of_us), "view")


def test_training_and_service_read_the_same_numbers(
    mini: Mini, observed: Observed, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = observed.data
    # The bank keeps the newest 150 videos, so the creators' earlier videos are known for the newest ones only.
    video = np.arange(len(data.videos) - 60, len(data.videos) - 20, 3)
    now = data.published_us[video] + 30 * HOUR_US
    with closing(Forecaster.load(mini.bundle, device="cpu")) as forecaster:
        model = forecaster.metrics["view"]
        trees: Any = model.trees
        assert trees is not None
        tables: list[NDArray[np.float32]] = []
        heads: list[Mapping[str, NDArray[Any]]] = []
        monkeypatch.setattr(trees, "weight", np.array([0.5, 0.5]))
        monkeypatch.setattr(trees, "growth", recorded(tables, trees.growth))
        monkeypatch.setattr(model, "head", recorded(heads, model.head))
        # The service limits the growth that a cascade expects to the largest of the training samples, which are others.
        support = replace(model.support, most=np.full_like(model.support.most, np.inf))
        monkeypatch.setattr(model, "support", support)
        forecaster.forecast(requests_of(observed, video, now))
        schema, cascade, pace = forecaster.manifest.schema, model.cascade, model.inputs.pace
    known = curves(observed.metric, observed.totals, data.published_us, mini.as_of_us, continuous=observed.continuous)
    known = replace(known, pace=np.asarray(pace, np.float64), base=trees.reader.base)
    horizon_us = np.round(grid_s(schema.max_horizon_us / SECOND_US)[STEPS[1:]] * SECOND_US).astype(np.int64)
    samples = read_samples(
        observed,
        video,
        now,
        horizon_us=np.tile(horizon_us, (len(video), 1)),
        value=np.full((len(video), TREE_HORIZONS), np.nan),
        cascade=cascade,
    )
    # The service limits summaries to the range of the training samples. These samples are others.
    samples = replace(samples, summary=support.within(samples.age_s, samples.summary, samples.cold))
    sample_set = SampleSet.of(data, known, samples, schema.max_horizon_us, 150)
    found = NeighbourInputs(np.asarray(heads[0]["neighbours"]), np.asarray(heads[0]["mask"]))
    built = read_inputs(trees.reader, sample_set, content_inputs(data.videos, schema), found)
    warm = np.flatnonzero(~samples.cold)
    served = tables[0].reshape(len(warm), TREE_HORIZONS, -1)
    np.testing.assert_allclose(served, built.rows().reshape(len(video), TREE_HORIZONS, -1)[warm], rtol=1e-4, atol=1e-4)
    # Some neighbour's growth was read.
    assert (served[..., -1] > 0).any()


def test_the_weights_of_the_trees_move_forecasts(mini: Mini, observed: Observed) -> None:
    video = np.arange(20, 60, 3)
    asked = requests_of(observed, video, observed.data.published_us[video] + 30 * HOUR_US)
    means = []
    with closing(Forecaster.load(mini.bundle, device="cpu")) as forecaster:
        trees: Any = forecaster.metrics["view"].trees
        for weight in (0.0, 1.0):
            trees.weight = np.full(2, weight)
            whole = forecaster.forecast(asked)
            single = [forecaster.forecast([one])[0] for one in asked]
            assert all(np.array_equal(a.quantiles, b.quantiles) for a, b in zip(whole, single, strict=True))
            means.append(np.array([forecast.mean[0] for forecast in whole]))
    assert (means[0] != means[1]).mean() > 0.5
