"""Trains one model in several processes together (``torchrun``), or in one process alone.

    torchrun --nproc-per-node 2 -m index_builder.cli train DATA ...

Every process reads the same data and computes a share of every batch. Before each step, the gradients are
concatenated and averaged by one all-reduce. torch's DistributedDataParallel is not used. This class needs a single
``forward`` that computes all outputs, but the trainer calls the components of the network one by one. The gradients are
only a few megabytes, so overlapping communication with computation would gain nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Final, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

_T = TypeVar("_T", bound=np.generic)
_TIMEOUT: Final = timedelta(hours=12)
"""Time limit for a collective operation. The limit is long because the other processes wait while the first process encodes all text."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """The processes of a training run. This process has number ``rank`` of ``size`` and computes on the torch ``device``."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Return whether this is the process that writes, evaluates and prints."""
        return self.rank == 0

    def broadcast(self, array: NDArray[_T]) -> NDArray[_T]:
        """Return the first process's ``array``. The array must have the same shape on every process."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        dist.broadcast(tensor, 0)
        out: NDArray[_T] = tensor.cpu().numpy()
        return out

    def broadcast_value(self, value: float) -> float:
        """Return the first process's ``value``."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor.item())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Return every process's ``tensor`` on the CPU, in order of rank. All tensors must have the same shape."""
        if self.size == 1:
            return [tensor]
        mine = tensor.to(self.device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine)
        return [each.cpu() for each in every]

    def all_reduce_gradients(self, parameters: Sequence[Tensor], contributors: int) -> None:
        """Set every gradient to its sum over all processes, divided by ``contributors``.

        ``contributors`` is the number of processes that had a share of the batch.
        """
        if self.size == 1:
            return
        for parameter in parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        grads = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([grad.flatten() for grad in grads])
        dist.all_reduce(flat)
        flat /= contributors
        for grad, part in zip(grads, flat.split([grad.numel() for grad in grads]), strict=True):
            grad.copy_(part.view_as(grad))


@contextmanager
def join_process_group(device: str) -> Iterator[ProcessGroup]:
    """Join the other processes if torchrun started this process. ``device`` is cpu or cuda."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "LOCAL_RANK" not in os.environ:
        yield ProcessGroup(torch.device(device))
        return
    target = torch.device(device)
    if target.type == "cuda":
        target = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(target)
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield ProcessGroup(target, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
