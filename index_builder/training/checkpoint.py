"""Checkpoints from which an interrupted run resumes. Each stage has one file, which is replaced as a whole after every pass.

    stage-N.safetensors    network, best weights, optimizer and random states
                           (the schedule and the losses are JSON in the file's header)

A checkpoint belongs to one training run. The data, settings, seed, number of processes, versions and code determine the
run. A checkpoint of a different run is ignored with a warning and then replaced. No pickle is used.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

import index_builder
import model
from index_builder.training.distributed import ProcessGroup
from index_builder.training.early_stopping import EarlyStopping
from model.errors import DataError


def run_key(*parts: Any) -> str:
    """Return a SHA-256 digest of what determines a run. Arrays are digested as bytes, and all other values as JSON."""
    digest = hashlib.sha256()
    for part in parts:
        whole = isinstance(part, np.ndarray)
        digest.update(np.ascontiguousarray(part).tobytes() if whole else json.dumps(part, sort_keys=True).encode())
    return digest.hexdigest()


def code_key() -> str:
    """Return a SHA-256 digest of the source code that trains: all modules of the builder and the model."""
    digest = hashlib.sha256()
    for package in (index_builder, model):
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            digest.update(path.relative_to(root).as_posix().encode() + path.read_bytes())
    return digest.hexdigest()


@dataclass(slots=True)
class Training:
    """The state of a stage that changes from step to step."""

    net: nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    rng: np.random.Generator
    best: EarlyStopping


class Checkpoints:
    """The checkpoints of one model of a run, in ``folder``.

    ``key`` identifies the run. ``name`` identifies the model if the run trains two models.
    """

    def __init__(self, folder: Path, key: str, process_group: ProcessGroup, name: str = "") -> None:
        self._folder, self._key, self._process_group, self._name = folder, key, process_group, name

    def _path(self, stage: int) -> Path:
        return self._folder / f"stage-{self._name}{stage}.safetensors"

    def save(self, stage: int, training: Training) -> None:
        """Write the state after a pass. Every process calls this method, and only the first process writes."""
        random = [self._process_group.gather(state) for state in _torch_random(self._process_group)]
        if not self._process_group.is_first:
            return
        tensors = {f"net.{name}": value for name, value in training.net.state_dict().items()}
        tensors |= {f"best.{name}": value for name, value in training.best.weights.items()}
        tensors |= {f"random.{i}.{rank}": state for i, every in enumerate(random) for rank, state in enumerate(every)}
        optimizer = training.optimizer.state_dict()
        for index, values in optimizer["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
        body = {
            "key": self._key,
            "losses": training.best.losses,
            "best": training.best.epoch,
            "schedule": training.schedule.state_dict(),
            "groups": optimizer["param_groups"],
            "rng": training.rng.bit_generator.state,
        }
        part = self._path(stage).with_suffix(".part")
        save_file({name: value.contiguous() for name, value in tensors.items()}, part, {"run": json.dumps(body)})
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(self._path(stage))

    def load(self, stage: int, training: Training) -> int:
        """Restore ``training`` from the stage's checkpoint. Return the number of passes done, or 0 without a checkpoint of this run."""
        found = self._read(stage)
        passes = len(found[0]["losses"]) if found is not None else 0
        if self._process_group.broadcast_value(passes) != passes:
            raise DataError("out: the processes see different checkpoints; allowed: a folder that all processes share")
        if found is None:
            return 0
        body, tensors = found
        training.net.load_state_dict(_under("net.", tensors))
        state: dict[int, dict[str, Tensor]] = {}
        for name, value in _under("optimizer.", tensors).items():
            index, field = name.split(".")
            state.setdefault(int(index), {})[field] = value
        training.optimizer.load_state_dict({"state": state, "param_groups": body["groups"]})
        training.schedule.load_state_dict(body["schedule"])
        training.rng.bit_generator.state = body["rng"]
        best = training.best
        best.losses, best.epoch, best.weights = body["losses"], body["best"], _under("best.", tensors)
        rank = self._process_group.rank
        torch.set_rng_state(tensors[f"random.0.{rank}"])
        if self._process_group.device.type == "cuda":
            torch.cuda.set_rng_state(tensors[f"random.1.{rank}"], self._process_group.device)
        return passes

    def _read(self, stage: int) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        path = self._path(stage)
        if not path.exists():
            return None
        try:
            with safe_open(path, "pt") as file:
                body = json.loads(file.metadata()["run"])
                if body["key"] == self._key:
                    return body, {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            reason = "belongs to different data, settings, seed, versions or code"
        except (SafetensorError, ValueError, KeyError, TypeError, OSError) as error:
            reason = f"cannot be read ({error})"
        if self._process_group.is_first:
            print(f"train: the checkpoint {path} {reason}; training starts from the beginning", file=sys.stderr)
        return None


def _torch_random(process_group: ProcessGroup) -> list[Tensor]:
    states = [torch.get_rng_state()]
    if process_group.device.type == "cuda":
        states.append(torch.cuda.get_rng_state(process_group.device))
    return states


def _under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
