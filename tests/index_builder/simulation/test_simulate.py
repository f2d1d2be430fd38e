"""The simulator: the same seed gives the same data, sizes are heavy-tailed, and content determines engagement."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray

from index_builder.datasets.check import check_dataset
from index_builder.datasets.load import load_dataset
from index_builder.simulation.engagement import MAX_EVENTS
from index_builder.simulation.simulate import DEFAULT_START_US, Simulation, simulate
from index_builder.simulation.videos import DAY_US, LIFE_DAYS
from model.engagement.bins import HOUR_US
from model.engagement.types import ENGAGEMENT_TYPES
from model.errors import DataError


def ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.argsort(np.argsort(values)).astype(np.float64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Simulation, float]:
    out = tmp_path_factory.mktemp("simulated") / "data"
    start = time.perf_counter()
    simulation = simulate(out, videos=1000, seed=5)
    return out, simulation, time.perf_counter() - start


def test_a_simulated_data_set_passes_the_check_and_is_fast(made: tuple[Path, Simulation, float]) -> None:
    out, simulation, took_s = made
    assert check_dataset(out) == []
    assert took_s < 20
    data = load_dataset(out)
    assert data.dropped == {}
    assert data.types == ENGAGEMENT_TYPES
    events = data.events
    assert events is not None
    assert np.array_equal(np.diff(events.offsets), simulation.counts)
    age_us = events.time_us - data.published_us[events.video]
    assert age_us.min() >= 0
    assert LIFE_DAYS[0] * DAY_US < age_us.max() < LIFE_DAYS[1] * DAY_US
    assert data.published_us[0] >= DEFAULT_START_US
    assert data.published_us[-1] < DEFAULT_START_US + 60 * DAY_US
    assert events.time_us.max() < simulation.end_us


def test_sizes_are_heavy_tailed_and_bounded(made: tuple[Path, Simulation, float]) -> None:
    counts = made[1].counts
    assert 10 < np.median(counts) < 100
    assert 100 < counts.mean() < 500
    assert 2_000 < counts.max() <= MAX_EVENTS


def test_content_correlates_with_the_final_count(made: tuple[Path, Simulation, float]) -> None:
    content, counts = made[1].content, made[1].counts
    assert np.corrcoef(ranks(content.shown), ranks(np.log1p(counts)))[0, 1] > 0.4
    table = {name: column.to_pylist() for name, column in content.columns.items()}
    for name in ("creator_id", "category"):
        keys = np.unique(table[name], return_inverse=True)[1]
        mean = np.bincount(keys, np.log1p(counts)) / np.bincount(keys)
        assert mean[np.bincount(keys) > 5].std() > 0.2, f"{name} moves the count"


def test_engagement_excites_engagement(made: tuple[Path, Simulation, float]) -> None:
    data = load_dataset(made[0])
    events = data.events
    assert events is not None
    hour = (events.time_us - data.published_us[events.video]) // 3_600_000_000
    busy = np.flatnonzero(made[1].counts > 500)
    dispersion = []
    for video in busy:
        later = np.bincount(hour[events.offsets[video] : events.offsets[video + 1]], minlength=169)[120:168]
        dispersion.append(later.var() / max(later.mean(), 1e-9))
    assert np.median(dispersion) > 1.5, "hourly counts vary more than a Poisson process would"


def test_titles_have_many_scripts(made: tuple[Path, Simulation, float]) -> None:
    titles = " ".join(made[1].content.columns["title"].to_pylist())
    for low, high in (("a", "z"), ("а", "я"), ("一", "鿿"), ("\u0621", "\u064a"), ("अ", "ह")):  # noqa: RUF001
        assert any(low <= letter <= high for letter in titles)


def test_the_files_say_that_the_data_is_synthetic(made: tuple[Path, Simulation, float]) -> None:
    for file in ("videos.parquet", "events.parquet"):
        assert pq.read_schema(made[0] / file).metadata[b"m3tr.synthetic"] == b"true"
    assert (made[0] / "README.txt").read_text("utf-8").startswith("SYNTHETIC DATA")


@pytest.mark.parametrize("counters", [False, True])
def test_the_same_seed_gives_the_same_columns(tmp_path: Path, counters: bool) -> None:
    for name, seed in (("one", 3), ("two", 3), ("other", 4)):
        simulate(tmp_path / name, videos=60, seed=seed, days=5, counters=counters)
    for file in ("videos.parquet", "counters.parquet" if counters else "events.parquet"):
        one, two, other = (pq.read_table(tmp_path / name / file) for name in ("one", "two", "other"))
        assert one.equals(two)
        assert not one.equals(other)


def test_counters_are_cumulative_counts_of_the_events(tmp_path: Path) -> None:
    simulate(tmp_path / "events", videos=80, seed=3, days=5)
    simulate(tmp_path / "counters", videos=80, seed=3, days=5, counters=True)
    assert check_dataset(tmp_path / "counters") == []
    events, counters = load_dataset(tmp_path / "events").events, load_dataset(tmp_path / "counters").counters
    assert events is not None
    assert counters is not None
    rng = np.random.default_rng(0)
    for row in rng.integers(0, len(counters), 200):
        mine = (events.video == counters.video[row]) & (events.type == counters.type[row])
        assert counters.value[row] == (mine & (events.time_us <= counters.time_us[row])).sum()


def test_errors_name_the_wrong_argument(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="in the future"):
        simulate(tmp_path, videos=1, seed=0, start_us=time.time_ns() // 1000)
    with pytest.raises(DataError, match="videos: 0 is not allowed"):
        simulate(tmp_path, videos=0, seed=0)
    simulate(tmp_path, videos=1, seed=0, days=1)
    with pytest.raises(DataError, match=r"already contains videos\.parquet, events\.parquet"):
        simulate(tmp_path, videos=1, seed=0, days=1)


def _days(folder: Path) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
    """Return each video's shape of the first day (V, 24), level, growth over the second day, and publication time."""
    data = load_dataset(folder)
    rows = data.counters
    assert rows is not None
    views = rows.type == data.types.index("view")
    video = np.repeat(np.arange(len(data.videos)), np.diff(rows.offsets))[views]
    hour = np.round((rows.time_us[views] - data.published_us[video]) / HOUR_US).astype(np.int64)
    table = np.zeros((len(data.videos), int(hour.max()) + 1))
    table[video, hour] = rows.value[views]
    watched = table[:, 48] > 0
    table, published = table[watched], data.published_us[watched]
    shape = np.sqrt(np.diff(table[:, :25], axis=1) / table[:, 24:25])
    return shape, np.log2(table[:, 24]), np.log2(table[:, 48] / table[:, 24]), published


def _by_shape(
    shape: NDArray[np.float64], growth: NDArray[np.float64], asked: NDArray[np.bool_], known: NDArray[np.bool_]
) -> float:
    """Return the correlation of the growth of ``asked`` videos with that of the five ``known`` videos of the nearest shapes."""
    centred = shape - shape.mean(0)
    unit = centred / np.linalg.norm(centred, axis=1, keepdims=True)
    similarity = unit[asked] @ unit[known].T
    similarity[similarity > 1 - 1e-9] = -1
    nearest = np.argsort(-similarity, axis=1)[:, :5]
    return float(np.corrcoef(growth[known][nearest].mean(1), growth[asked])[0, 1])


def test_the_shape_of_a_curve_tells_its_growth_until_a_drift(tmp_path: Path) -> None:
    drift_us = DEFAULT_START_US + 30 * DAY_US
    simulate(tmp_path / "data", videos=600, seed=3, shapes=8, drift_us=drift_us)
    assert check_dataset(tmp_path / "data") == []
    shape, level, growth, published = _days(tmp_path / "data")
    before, after = published < drift_us - DAY_US, published >= drift_us
    assert abs(np.corrcoef(level, growth)[0, 1]) < 0.15, "the level tells nothing"
    assert _by_shape(shape, growth, before, before) > 0.6
    assert _by_shape(shape, growth, after, after) > 0.6
    assert _by_shape(shape, growth, after, before) < -0.5, "earlier videos mislead after the drift"


def test_a_drift_without_shapes_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="shapes: 0 is not allowed; allowed: 0, or 2 or more; a drift needs 2 or more"):
        simulate(tmp_path / "data", videos=10, seed=3, drift_us=DEFAULT_START_US)
