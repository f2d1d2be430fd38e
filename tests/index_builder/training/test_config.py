"""Settings of training: those that depend on the size of the data set, and their ranges."""

from __future__ import annotations

from pathlib import Path

import pytest

from index_builder.training.config import TrainConfig
from model.errors import DataError


def test_settings_for_few_videos_differ() -> None:
    few, many = (TrainConfig().suited_to(videos) for videos in (2_000, 70_000))
    assert few.head_dropout > many.head_dropout and few.weight_decay > many.weight_decay
    assert few.cuts_per_video > many.cuts_per_video
    assert 0 < few.fusion_epochs < many.fusion_epochs


@pytest.mark.parametrize("amount", [0.0, 0.1])
def test_explicit_settings_are_kept(amount: float) -> None:
    mine = TrainConfig(
        head_dropout=amount, weight_decay=amount, cuts_per_video=5, fusion_epochs=0, validation_share=0.2
    )
    assert mine.suited_to(2_000) == mine.suited_to(70_000) == mine
    assert not mine.parts.retrieval


def test_few_batches_get_more_passes() -> None:
    config = TrainConfig()
    assert config.passes(56, 2_000) == 2 and config.passes(5, 60) == 23 and config.passes(1, 60) == 30
    assert config.passes(152, 70_000) == 3
    assert TrainConfig(epochs=4).passes(1, 60) == 4


@pytest.mark.parametrize(
    "line",
    [
        "fusion_epochs = -2",
        "fusion_epochs = 1.5",
        "few_videos = 0.5",
        "few_videos = -1",
        "use_cascade = 1",
        "head_dropout = 1.0",
        "weight_decay = -0.5",
        "learning_rate = true",
    ],
)
def test_a_setting_out_of_range_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "train.toml"
    path.write_text(line, encoding="utf-8")
    with pytest.raises(DataError, match=line.split()[0]):
        TrainConfig.read(path)


def test_few_videos_hold_out_enough_of_them_for_weights_and_intervals() -> None:
    shares = [TrainConfig().suited_to(videos).validation_share for videos in (60, 250, 500, 1000, 70_000)]
    assert shares == pytest.approx([1 / 3, 1 / 3, 0.2, 0.1, 0.1])
