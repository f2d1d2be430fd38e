"""Several processes that train one model together (``torchrun``), or one alone.

    torchrun --nproc-per-node 2 -m index_builder.cli train DATA ...

Every rank reads the same data and takes its share of every batch; gradients are averaged by one all-reduce of their
concatenation before each step. torch's DistributedDataParallel would hook into one ``objective`` that makes all outputs; ours
calls the parts of the network one by one, and its gradients are a few megabytes, so that nothing would be gained by overlap.
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
_PATIENCE: Final = timedelta(hours=12)
"""The first rank encodes all text while the others wait for it."""


@dataclass(frozen=True, slots=True)
class ProcessGroup:
    """This process, number ``rank`` of ``size``, and the torch ``device`` it computes on."""

    device: torch.device
    rank: int = 0
    size: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes, evaluates and prints."""
        return self.rank == 0

    def broadcast(self, array: NDArray[_T]) -> NDArray[_T]:
        """The first rank's ``array``, which has the same shape on every rank."""
        if self.size == 1:
            return array
        tensor = torch.from_numpy(np.ascontiguousarray(array)).to(self.device)
        dist.broadcast(tensor, 0)
        out: NDArray[_T] = tensor.cpu().numpy()
        return out

    def broadcast_value(self, value: float) -> float:
        """The first rank's ``value``."""
        if self.size == 1:
            return value
        tensor = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.broadcast(tensor, 0)
        return float(tensor.item())

    def gather(self, tensor: Tensor) -> list[Tensor]:
        """Every rank's ``tensor``, of one shape, on the CPU, by rank."""
        if self.size == 1:
            return [tensor]
        mine = tensor.to(self.device)
        every = [torch.empty_like(mine) for _ in range(self.size)]
        dist.all_gather(every, mine)
        return [each.cpu() for each in every]

    def all_reduce_gradients(self, parameters: Sequence[Tensor], contributors: int) -> None:
        """Set every gradient to the process_group' sum divided by ``contributors``, the process_group that had a share of the batch."""
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
    """Meet the other processes if torchrun started this one; ``device`` is cpu or cuda."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1 or "LOCAL_RANK" not in os.environ:
        yield ProcessGroup(torch.device(device))
        return
    target = torch.device(device)
    if target.type == "cuda":
        target = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(target)
    dist.init_process_group("nccl" if target.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield ProcessGroup(target, dist.get_rank(), size)
    finally:
        dist.destroy_process_group()
