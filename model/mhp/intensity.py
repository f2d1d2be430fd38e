"""Current intensity from a hidden state, without PyTorch: the formula of ``model.mhp.likelihood`` at one moment."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from model.tokens import LOG_AGE_OFFSET_S


def rates_per_hour(
    weights: Mapping[str, NDArray[np.float32]], hidden: NDArray[np.float32], pace: NDArray[np.float32],
    cold: NDArray[np.bool_], last_end_s: NDArray[np.float64], age_s: NDArray[np.float64],
) -> NDArray[np.float64]:  # fmt: skip
    """Expected engagements an hour of each type, (N, K) float64.

    ``hidden`` (N, d_model) after the newest token, which ended at age ``last_end_s`` (N,); rows that are ``cold`` have none and
    start from the learned initial state. ``pace`` (N, K, M, 2) is that of ``model.mhp.pace.pace_now``. The intensity is
    lambda(tau) = S softplus(alpha tau + c) / (t_j + offset).
    """
    start = weights["intensity.start"]
    state = np.where(cold[:, None], start, hidden).astype(np.float64)
    projected = np.einsum("nd,kd->nk", state, weights["intensity.project.weight"].astype(np.float64), optimize=False)
    projected += weights["intensity.project.bias"]
    log_scale, c, alpha, _ = np.split(projected, 4, axis=1)
    own = np.log((pace[..., 0] + 1.0) / (pace[..., 1] + 1.0 / weights["intensity.usual"].astype(np.float64)[:, None]))
    log_scale = 4 * log_scale + (own * weights["intensity.exponents"].reshape(own.shape[1:])).sum(-1)
    clock = (last_end_s + LOG_AGE_OFFSET_S)[:, None]
    tau = np.maximum(age_s - last_end_s, 0)[:, None] / clock
    rate = np.exp(np.clip(log_scale, -20, 30)) * np.logaddexp(0, -np.logaddexp(0, alpha) * tau + c)
    out: NDArray[np.float64] = 3600 * rate / clock
    return out
