"""Selects the backend for a device."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model.errors import M3TRError
from model.mhp.backend import Backend
from model.mhp.shape import MHPShape

log = logging.getLogger(__name__)


def choose_backend(device: str, shape: MHPShape, weights: Mapping[str, NDArray[np.float32]]) -> Backend:
    """Return the backend for ``device``, which is "cpu", "cuda" or "auto".

    "auto" means CUDA if PyTorch finds a GPU and mamba-ssm is installed, and otherwise the CPU.

    Raises:
        M3TRError: ``device`` is "cuda" and the GPU or mamba-ssm is missing, or ``device`` is none of the three
            values.
    """
    if device not in {"auto", "cpu", "cuda"}:
        raise M3TRError(f"device: {device!r}; allowed: auto, cpu, cuda")
    if device != "cpu" and _cuda_present():
        from model.mhp.backends.cuda import CUDABackend

        try:
            return CUDABackend(shape, weights)
        except ImportError as error:
            problem = f"mamba-ssm cannot be imported: {error}"
            if device == "cuda":
                raise M3TRError(f"device: 'cuda', but {problem}; install the extra [gpu]") from error
            log.warning(
                "a CUDA device was found, but %s; the CPU is used instead; install the extra [gpu] to use the GPU",
                problem,
            )
    elif device == "cuda":
        raise M3TRError("device: 'cuda', but no CUDA device and driver were found; allowed here: auto, cpu")
    from model.mhp.backends.cpu import CPUBackend

    return CPUBackend(shape, weights)


def _cuda_present() -> bool:
    # Ask the driver's library first. Importing torch takes a second and 0.7 GB, and a server without a GPU does not need it.
    import ctypes

    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    if driver.cuInit(0) != 0 or driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value == 0:
        return False
    import torch

    return torch.cuda.is_available()
