"""Early stopping restores the weights of the best pass, and makes no more passes than patience allows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from index_builder.datasets.load import load_dataset
from index_builder.scoring.holdout import stopping_half
from index_builder.training.early_stopping import EarlyStopping
from index_builder.training.train import train
from model.bundle import load_bundle
from tests.conftest import MINI_CONFIG, Mini

pytestmark = pytest.mark.slow


def net_of(value: float) -> nn.Linear:
    net = nn.Linear(1, 1, bias=False)
    nn.init.constant_(net.weight, value)
    return net


def passes(patience: int, losses: list[float]) -> tuple[int, float]:
    """Number of passes until the stage is exhausted, and which pass's weights are restored."""
    best, net = EarlyStopping(patience), net_of(0)
    for made, loss in enumerate(losses, 1):
        nn.init.constant_(net.weight, made)
        best.see(loss, net)
        if best.exhausted:
            break
    best.restore(net)
    return len(best.losses), net.weight.item()


@pytest.mark.parametrize(
    ("patience", "losses", "expected"),
    [
        (2, [3.0, 2.0, 2.5, 2.2, 1.0], (4, 2)),
        (3, [3.0, 2.0, 2.5, 2.2, 1.0], (5, 5)),
        (1, [1.0, 1.0, 0.5], (2, 1)),
        (0, [1.0, 2.0, 3.0, 4.0], (4, 4)),
        (2, [float("nan")] * 4, (4, 4)),
        (2, [float("nan"), 2.0, float("nan"), float("nan")], (4, 2)),
    ],
)
def test_the_best_pass_is_kept(patience: int, losses: list[float], expected: tuple[int, float]) -> None:
    assert passes(patience, losses) == expected


def test_kept_weights_do_not_change_with_the_network() -> None:
    best, net = EarlyStopping(3), net_of(1)
    best.see(1.0, net)
    nn.init.constant_(net.get_parameter("weight"), 9)
    assert torch.equal(best.weights["weight"], torch.ones(1, 1))


def test_a_learning_rate_that_is_too_high_is_stopped_and_undone(mini: Mini, tmp_path: Path) -> None:
    """Real training: from some pass on the holdout loss only rises."""
    config = tmp_path / "config.toml"
    settings = MINI_CONFIG.replace("epochs = 1\n", "epochs = 12\n", 1) + "patience = 1\nlearning_rate = 0.2\n"
    config.write_text(settings, encoding="utf-8")
    train(mini.data, as_of_us=mini.as_of_us, metric="view", out=tmp_path / "bundle", device="cpu", config=config)
    made = load_bundle(tmp_path / "bundle").manifest.training["passes"]["forecast"]
    losses, best = made["held_back_loss"], made["best"]
    assert len(losses) == best + 1 < 12
    assert losses[best - 1] == min(losses)


def test_the_stopping_half_is_stable(mini: Mini) -> None:
    data = load_dataset(mini.data)
    every = np.arange(len(data.videos))
    half = stopping_half(data, every)
    assert 0.35 < half.mean() < 0.65
    rows = np.array([7, 3, 7])
    assert stopping_half(data, rows).tolist() == half[rows].tolist()
