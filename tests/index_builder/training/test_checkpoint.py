"""A killed training resumes, and ends with the same weights to the bit as one that was not killed."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from index_builder.simulation.simulate import simulate
from index_builder.training import checkpoint
from index_builder.training.checkpoint import Checkpoints, Training, run_key
from index_builder.training.distributed import join_process_group
from index_builder.training.early_stopping import EarlyStopping
from index_builder.training.staging import staging_folder, staging_path
from index_builder.training.train import train
from model.errors import DataError

pytestmark = pytest.mark.slow

AS_OF = "2025-09-10"
CONFIG = """epochs = 6
fusion_epochs = 8
patience = 0
d_model = 8
n_layers = 1
cuts_per_video = 8
batch_tokens = 1000
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("resume")
    simulate(folder / "data", videos=90, seed=5, days=10, counters=True)
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    return folder / "data"


def start(data: Path, out: Path) -> subprocess.Popen[str]:
    command = ["train", data, "--as-of", AS_OF, "--metric", "views", "--device", "cpu", "--seed", 3, "--out", out]
    return subprocess.Popen(
        [sys.executable, "-m", "index_builder.cli", *map(str, command), "--config", data.parent / "config.toml"],
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str]) -> str:
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    return errors


def kill_after(process: subprocess.Popen[str], file: Path) -> None:
    """kill -9 as soon as ``file`` exists."""
    while not file.exists() and process.poll() is None:
        time.sleep(0.002)
    process.kill()
    process.communicate()
    assert process.returncode == -9, "it ended before it could be killed"


def hashes(bundle: Path) -> dict[str, str]:
    names = ("weights.safetensors", "content.onnx", "head.onnx", "calibration.json")
    return {name: hashlib.sha256((bundle / name).read_bytes()).hexdigest() for name in names}


def test_a_training_killed_in_any_stage_ends_with_the_same_bundle(data: Path, tmp_path: Path) -> None:
    finish(start(data, tmp_path / "whole"))
    out = tmp_path / "killed"
    place = staging_path(out)
    kill_after(start(data, out), place / "stage-1.safetensors")
    assert not (place / "stage-2.safetensors").exists()
    kill_after(start(data, out), place / "stage-2.safetensors")
    assert not (place / "stage-all-1.safetensors").exists()
    kill_after(start(data, out), place / "stage-all-1.safetensors")
    printed = finish(start(data, out))
    assert "training starts from the beginning" not in printed
    assert hashes(out) == hashes(tmp_path / "whole")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["killed", "whole"]


def small_training() -> Training:
    net = nn.Linear(2, 1)
    optimizer = torch.optim.AdamW(net.parameters(), lr=0.1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
    return Training(net, optimizer, schedule, np.random.default_rng(0), EarlyStopping(patience=3))


def a_pass(training: Training) -> float:
    x = torch.from_numpy(training.rng.normal(size=(4, 2)).astype(np.float32))
    loss = training.net(nn.functional.dropout(x, 0.5)).square().mean()
    training.optimizer.zero_grad()
    loss.backward()
    training.optimizer.step()
    training.schedule.step()
    training.best.see(loss.item(), training.net)
    return loss.item()


def test_a_checkpoint_restores_the_whole_state(tmp_path: Path) -> None:
    with join_process_group("cpu") as process_group:
        checkpoints, first, again = Checkpoints(tmp_path, "key", process_group), small_training(), small_training()
        a_pass(first)
        checkpoints.save(1, first)
        expected = [a_pass(first), a_pass(first)]
        assert checkpoints.load(1, again) == 1
        assert [a_pass(again), a_pass(again)] == expected
    assert (again.best.losses, again.best.epoch) == (first.best.losses, first.best.epoch)
    assert torch.equal(again.best.weights["weight"], first.best.weights["weight"])
    assert again.optimizer.param_groups[0]["lr"] == first.optimizer.param_groups[0]["lr"]


def test_a_damaged_checkpoint_or_one_of_another_run_is_ignored_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with join_process_group("cpu") as process_group:
        training = small_training()
        a_pass(training)
        Checkpoints(tmp_path, "of seed 3", process_group).save(1, training)
        before = training.net.weight.clone()  # type: ignore[operator]
        other = Checkpoints(tmp_path, "of seed 4", process_group)
        assert other.load(1, training) == 0
        assert (
            "belongs to different data, settings, seed, versions or code; training starts from the beginning"
            in capsys.readouterr().err
        )
        (tmp_path / "stage-1.safetensors").write_bytes(b"no checkpoint")
        assert other.load(1, training) == 0
    assert "stage-1.safetensors cannot be read" in capsys.readouterr().err
    assert torch.equal(training.net.weight, before)  # type: ignore[arg-type]


def test_the_key_of_a_run_depends_on_all_its_parts() -> None:
    array = np.arange(3)
    assert run_key({"a": 1, "b": 2}, array) == run_key({"b": 2, "a": 1}, array.copy())
    assert len({run_key({"a": 1}, array), run_key({"a": 2}, array), run_key({"a": 1}, array + 1)}) == 3


def test_the_key_of_the_code_changes_with_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "part").mkdir()
    files = [tmp_path / "__init__.py", tmp_path / "part" / "module.py"]
    keys = [checkpoint.code_key()]
    monkeypatch.setattr(checkpoint, "model", SimpleNamespace(__file__=str(files[0])))
    for file in files:
        file.write_text("x = 1\n", encoding="utf-8")
        keys.append(checkpoint.code_key())
    assert len({*keys}) == 3 and checkpoint.code_key() == keys[-1]


def test_a_second_training_of_the_same_bundle_is_refused(data: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with (
        staging_folder(out),
        pytest.raises(DataError, match="another training is writing"),
    ):
        train(data, as_of_us=1_757_462_400_000_000, metric="views", out=out, device="cpu")
    assert out.is_dir()


def test_a_failed_training_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="on purpose"), staging_folder(tmp_path / "out") as bundle:
        (bundle / "file").write_text("half")
        raise RuntimeError("on purpose")
    assert list(tmp_path.iterdir()) == []
