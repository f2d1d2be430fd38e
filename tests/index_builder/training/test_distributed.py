"""Two processes under torchrun train one model, and the result is close to that of one process."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from index_builder.cli import parse_time
from index_builder.simulation.simulate import simulate
from index_builder.training.batches import Batch
from index_builder.training.train import train
from model.bundle import load_bundle
from tests import patience
from tests.project.processes import free_port

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
AS_OF = "2025-09-10"
CONFIG = """epochs = 3
fusion_epochs = 2
d_model = 8
n_layers = 1
batch_tokens = 500
"""
SPY = """
import os, sys
from safetensors.torch import save_file
from index_builder.training.trainer import Trainer
from index_builder.cli import main

real = Trainer.stage_two

def spied(self, *args):
    out = real(self, *args)
    save_file(self.objective.net.state_dict(), os.environ["SPIED"] + os.environ["RANK"])
    return out

Trainer.stage_two = spied
main()
"""


def test_two_processes_train_the_same_weights_and_write_one_bundle(tmp_path: Path) -> None:
    simulate(tmp_path / "data", videos=90, seed=5, days=10, counters=True)
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    (tmp_path / "spy.py").write_text(SPY, encoding="utf-8")
    launch = [
        "-m",
        "torch.distributed.run",
        "--nproc-per-node",
        2,
        "--master-addr",
        "127.0.0.1",
        "--master-port",
        free_port(),
    ]
    place = ["--out", tmp_path / "two", "--config", tmp_path / "config.toml"]
    command = [tmp_path / "spy.py", "train", tmp_path / "data", "--as-of", AS_OF, "--metric", "views", *place]
    done = patience.run(
        [sys.executable, *map(str, launch + command), "--device", "cpu"],
        env={**os.environ, "PYTHONPATH": str(ROOT), "SPIED": str(tmp_path / "rank"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        seconds=120,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("write bundle: done") == 1
    weights = [load_file(tmp_path / f"rank{rank}") for rank in (0, 1)]
    assert all(np.array_equal(value, weights[1][name]) for name, value in weights[0].items())
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_dir()) == ["data", "two"]

    train(
        tmp_path / "data",
        as_of_us=parse_time(AS_OF),
        metric="views",
        out=tmp_path / "one",
        device="cpu",
        config=tmp_path / "config.toml",
    )
    one, two = (load_bundle(tmp_path / name) for name in ("one", "two"))
    assert (one.manifest.training["processes"], two.manifest.training["processes"]) == (1, 2)
    for stage in ("forecast", "fusion"):
        alone, together = (b.manifest.training["passes"][stage]["held_back_loss"] for b in (one, two))
        assert together == pytest.approx(alone, rel=0.05)
    falling = two.manifest.training["passes"]["forecast"]["held_back_loss"]
    assert falling[-1] < falling[0]
    assert not np.array_equal(two.weights["mhp.embed.weight"], one.weights["mhp.embed.weight"])


def test_the_parts_of_a_batch_make_the_whole_batch() -> None:
    rows = np.arange(10).reshape(5, 2)
    batch = Batch(np.arange(5), rows, rows >= 0, 7)
    shares = [batch.share(rank, 3) for rank in range(3)]
    assert sorted(np.concatenate([share.videos for share in shares]).tolist()) == list(range(5))
    assert sorted(np.concatenate([share.rows for share in shares]).ravel().tolist()) == list(range(10))
    assert [len(batch.share(rank, 8).videos) for rank in range(8)] == [1] * 5 + [0] * 3
