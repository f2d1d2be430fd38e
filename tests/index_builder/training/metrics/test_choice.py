"""Without --metric, a bundle forecasts each counted type that most videos have."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_dataset
from index_builder.simulation.simulate import simulate
from index_builder.training.metrics.choice import observed_metrics
from model.errors import DataError


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> DataSet:
    folder = tmp_path_factory.mktemp("choice") / "data"
    simulate(folder, videos=60, seed=3, days=20, counters=True)
    return load_dataset(folder)


def names(data: DataSet, *metrics: str) -> list[str]:
    return [observed.name for observed in observed_metrics(data, metrics)]


def without(data: DataSet, kind: str, share: float) -> DataSet:
    """The data set, where a share of the videos, the newest, has no count of a type."""
    rows = data.counters
    assert rows is not None
    gone = (rows.type == data.types.index(kind)) & (rows.video >= (1 - share) * len(data.videos))
    return replace(data, counters=replace(rows, value=np.where(gone, 0, rows.value)))


def test_counted_types_that_most_videos_have_are_chosen(data: DataSet, capsys: pytest.CaptureFixture[str]) -> None:
    assert names(data)[:2] == ["views", "likes"]
    capsys.readouterr()
    assert "likes" not in names(without(data, "like", 0.7))
    assert "not forecast: likes (0% of the videos have it)" in capsys.readouterr().err


def test_a_type_that_the_newest_videos_lack_is_not_chosen(data: DataSet) -> None:
    assert "likes" not in names(without(data, "like", 0.15))


def test_events_are_named_by_their_type(tmp_path: Path) -> None:
    simulate(tmp_path / "data", videos=60, seed=3, days=20)
    assert names(load_dataset(tmp_path / "data"))[:2] == ["view", "like"]


def test_named_metrics_keep_their_order(data: DataSet) -> None:
    assert names(data, "likes", "total", "views") == ["likes", "total", "views"]


@pytest.mark.parametrize(
    ("metrics", "said"),
    [
        (("views", "views"), "'views' is named twice"),
        (("views", "view"), "'view' counts the same as 'views'"),
        (("views", "laughs"), "'laughs' is not observed here"),
    ],
)
def test_metrics_that_cannot_be_used_are_named(data: DataSet, metrics: tuple[str, ...], said: str) -> None:
    with pytest.raises(DataError, match=said):
        observed_metrics(data, metrics)


def test_a_data_set_without_any_metric_says_so(data: DataSet) -> None:
    bare = data
    for kind in data.types:
        bare = without(bare, kind, 1.0)
    with pytest.raises(DataError, match="name a metric with --metric"):
        observed_metrics(bare, ())
