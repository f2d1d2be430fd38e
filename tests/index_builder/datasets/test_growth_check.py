"""What a training prints before it starts (doubtful data, no growth to learn from, its duration), and at its end."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.training.config import TrainConfig
from index_builder.training.duration_estimate import duration_in_words, estimate_s
from index_builder.training.train import train
from model.errors import DataError
from tests.conftest import Mini

HOUR = 3_600_000_000
N = 60
LATER = 10**6 * HOUR


def at(*hours: float) -> pa.Array:
    return pa.array([int(h * HOUR) for h in hours], pa.timestamp("us", tz="UTC"))


def made(folder: Path, **files: dict[str, Any]) -> Path:
    folder.mkdir(exist_ok=True)
    videos = {"video_id": [f"v{i}" for i in range(N)], "published_at": at(*range(N))}
    for name, columns in {"videos": videos, **files}.items():
        pq.write_table(pa.table(columns), folder / f"{name}.parquet")
    return folder


def readings(values: list[int], column: str = "views") -> dict[str, Any]:
    """The same readings for every video, an hour apart."""
    k = len(values)
    return {
        "video_id": [f"v{i}" for i in range(N) for _ in range(k)],
        "time": at(*(i + 1 + j for i in range(N) for j in range(k))),
        column: values * N,
    }


def started(data: Path, out: Path, metric: str = "views") -> None:
    train(data, as_of_us=LATER, metric=metric, out=out, device="cpu")


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {"counters": readings([7])},
            "views: each of 60 videos has only one reading; there is no growth to learn from",
        ),
        ({"counters": readings([7, 7, 7])}, "views: is the same at every reading of each video"),
        (
            {"events": {"video_id": [f"v{i}" for i in range(N)], "time": at(*range(N)), "type": ["view"] * N}},
            "views: every event is at the time of publication",
        ),
    ],
)
def test_data_without_growth_is_refused_before_training(tmp_path: Path, files: dict[str, Any], message: str) -> None:
    data = made(tmp_path / "data", **files)
    with pytest.raises(DataError, match=message):
        started(data, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data"]


def test_suspected_increments_are_reported_with_a_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = made(tmp_path / "data", counters=readings([9, 4, 6, 2, 1]) | {"like_count": [1] * 5 * N})
    with pytest.raises(DataError, match="views: is the same"):
        started(data, tmp_path / "out")
    printed = " ".join(capsys.readouterr().err.replace("│", " ").split())
    assert "75% of the readings are below the one before: are these increments?" in printed
    assert "give increments as events.parquet, with video_id, time, type and count" in printed
    assert "like_count" in printed
    assert "did you mean likes?" in printed


def test_the_estimated_duration_grows_with_the_data(tmp_path: Path) -> None:
    few = Observed.of(load_dataset(made(tmp_path / "few", counters=readings([1, 2]))), "views")
    many = Observed.of(load_dataset(made(tmp_path / "many", counters=readings(list(range(1, 300))))), "views")
    config = TrainConfig().suited_to(N)
    assert 10 < estimate_s(few, config) < estimate_s(many, config)
    twice = Observed.of(load_dataset(made(tmp_path / "twice", counters=readings(list(range(1, 600))))), "views")
    assert estimate_s(many, config) <= estimate_s(twice, config) <= 2 * estimate_s(many, config)
    for less in ({"tree_rounds": 0}, {"refit": False}, {"epochs": 1}, {"use_mhp": False}):
        assert estimate_s(many, replace(config, **less)) < estimate_s(many, config)
    assert [duration_in_words(s) for s in (3, 44, 100, 6000, 7200)] == [
        "about 10 s",
        "about 40 s",
        "about 2 min",
        "about 1.7 h",
        "about 2.0 h",
    ]


def test_a_finished_training_reports_the_bundle_the_verdict_and_the_next_command(mini: Mini) -> None:
    first, last = mini.said.splitlines()
    assert first.startswith(f"{mini.bundle}: bundle of view. On holdout videos it is ")
    assert "better than" in first or "worse than" in first
    assert last == f"next: m3tr-serve --bundle {mini.bundle}"
    page = (mini.bundle / "report.html").read_text("utf-8")
    assert first.partition("it is ")[2] in page, "the report leads with the same verdict"
