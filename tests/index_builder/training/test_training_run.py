"""With few videos two models are trained: one without the holdout is scored, one on all videos is served."""

from __future__ import annotations

import numpy as np
import pytest

from index_builder.training.train import train
from model.bundle import Bundle, load_bundle
from tests.conftest import MINI_CONFIG, Mini

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def once(mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Like the mini bundle, but without the second model. About 8 s."""
    folder = tmp_path_factory.mktemp("once")
    config = folder / "config.toml"
    config.write_text(MINI_CONFIG + "refit = false\n", encoding="utf-8")
    train(mini.data, as_of_us=mini.as_of_us, metric="view", out=folder / "bundle", device="cpu", seed=1, config=config)
    return load_bundle(folder / "bundle")


def test_scores_and_intervals_come_from_the_model_without_the_holdout(mini: Mini, once: Bundle) -> None:
    twice = load_bundle(mini.bundle)
    assert twice.manifest.evaluation == once.manifest.evaluation
    assert np.array_equal(twice.calibration.stretch, once.calibration.stretch)
    assert twice.manifest.training["passes"] == once.manifest.training["passes"]


def test_the_served_model_has_learned_from_the_holdout_too(mini: Mini, once: Bundle) -> None:
    twice = load_bundle(mini.bundle)
    assert (twice.manifest.training["learned_all"], once.manifest.training["learned_all"]) == (True, False)
    assert twice.manifest.training["samples"] > once.manifest.training["samples"]
    assert set(twice.weights) == set(once.weights)
    assert any(not np.array_equal(twice.weights[name], once.weights[name]) for name in once.weights)


def test_the_report_says_which_model_is_served(mini: Mini, once: Bundle) -> None:
    two, one = ((path / "report.html").read_text(encoding="utf-8") for path in (mini.bundle, once.path))
    for words in (
        "held out for the scores; then a second model learned from all samples",
        "It has learned from these videos too",
    ):
        assert words in two and words not in one
