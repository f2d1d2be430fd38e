"""Training and evaluation score the same likelihood of the same videos."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.likelihood import mhp_log_likelihood
from index_builder.evaluation.process_states import scored_rows
from index_builder.samples.exposure import oldest_us
from index_builder.simulation.simulate import simulate
from index_builder.training.config import TrainConfig
from index_builder.training.distributed import join_process_group
from index_builder.training.plan import Plan
from index_builder.training.training_run import TrainingRun
from model.network import SENTENCE_DIM


def test_training_scores_every_token_and_the_silence(tmp_path: Path) -> None:
    """Tokens after a video's last cut point are scored too, and so is the silence until the end of observation."""
    simulate(tmp_path / "data", videos=60, seed=3, days=20)
    data = load_dataset(tmp_path / "data")
    observed, config = Observed.of(data, "view"), TrainConfig(epochs=1, fusion_epochs=0, d_model=8, cuts_per_video=2)
    with join_process_group("cpu") as group:
        plan = Plan(observed, config.suited_to(60), data.last_us() or 0, group, 0)
        run = TrainingRun(plan, np.zeros((60, SENTENCE_DIM), np.float32), tmp_path)
        model, forecasts = run.fit_with_holdout()
    objective, samples = model.objective, forecasts.holdout.samples
    videos = np.unique(samples.video)
    rows = scored_rows(observed, videos, plan.until_us, oldest_us(plan.schema))
    parameters = objective.net.state_dict().items()
    weights = {name: value.numpy() for name, value in parameters if name.startswith(("mhp.", "intensity."))}
    bundle = SimpleNamespace(weights=weights, manifest=SimpleNamespace(shape=plan.shape))
    scored = mhp_log_likelihood(bundle, *rows)  # type: ignore[arg-type]
    want = float(scored.sum()) / rows[1].n_counts
    assert objective.mean_log_likelihood(samples) == pytest.approx(want, rel=1e-4)
    assert (rows[1].token >= 0).sum() > samples.position.max()
    assert (objective.net.intensity.log_factor != 0).any()
