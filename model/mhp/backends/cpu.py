"""The serving backend on a CPU: one compiled kernel that updates the slots in place.

The kernel reads one token of one slot at a time, always in the same order of operations. So its result does not
depend on the batch or on how tokens are divided among calls. Reading tokens one by one gives exactly the same bits as
reading them in one call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numba
import numpy as np
from numpy.typing import NDArray

from model.mhp.backend import States
from model.mhp.fast_math import exp32, silu32, softplus32
from model.mhp.shape import MHPShape

_NORM_EPSILON: Final = np.float32(1e-5)


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _norm(x, weight, out):  # type: ignore[no-untyped-def]
    total = np.float32(0.0)
    for i in range(len(x)):
        total += x[i] * x[i]
    scale = np.float32(1.0) / np.sqrt(total / np.float32(len(x)) + _NORM_EPSILON)
    for i in range(len(x)):
        out[i] = x[i] * scale * weight[i]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _matvec(x, matrix, out):  # type: ignore[no-untyped-def]
    # ``matrix`` has the shape (in, out). The inner loop runs over outputs, so it vectorises without reordering any sum.
    out[:] = np.float32(0.0)
    for i in range(len(x)):
        xi = x[i]
        for j in range(len(out)):
            out[j] += xi * matrix[i, j]


@numba.njit(cache=True, nogil=True, fastmath={"contract"})
def _token(  # type: ignore[no-untyped-def]
    features,
    clock,
    embed,
    embed_bias,
    norm,
    in_proj,
    taps,
    conv_bias,
    x_proj,
    dt_proj,
    dt_bias,
    a,
    skip,
    out_proj,
    inverse_tau,
    mix,
    norm_f,
    state,
    window,
    x,
    normed,
    raw,
    u,
    projected,
    gap,
    y,
    delta_x,
    hidden,
):
    n_layers, n_state, inner = state.shape
    rank = dt_proj.shape[1]
    width = window.shape[1]
    _matvec(features, embed, x)
    for i in range(len(x)):
        x[i] += embed_bias[i]
    for layer in range(n_layers):
        _norm(x, norm[layer], normed)
        _matvec(normed, in_proj[layer], raw)
        for d in range(inner):
            u[d] = conv_bias[layer, d] + taps[layer, width, d] * raw[d]
        for k in range(width):
            for d in range(inner):
                u[d] += taps[layer, k, d] * window[layer, k, d]
        for k in range(width - 1):
            window[layer, k, :] = window[layer, k + 1, :]
        window[layer, width - 1, :] = raw[:inner]
        for d in range(inner):
            u[d] = silu32(u[d])
        _matvec(u, x_proj[layer], projected)
        _matvec(projected[:rank], dt_proj[layer], gap)
        for d in range(inner):
            delta = softplus32(gap[d] + dt_bias[layer, d])
            gap[d] = delta * (
                mix[layer, d] * clock[0] * inverse_tau[layer, d] + (np.float32(1.0) - mix[layer, d]) * clock[1]
            )
            y[d] = skip[layer, d] * u[d]
            u[d] = delta * u[d]
        for n in range(n_state):
            b, c = projected[rank + n], projected[rank + n_state + n]
            for d in range(inner):
                z = exp32(gap[d] * a[layer, n, d]) * state[layer, n, d] + u[d] * b
                state[layer, n, d] = z
                y[d] += c * z
        for d in range(inner):
            y[d] *= silu32(raw[inner + d])
        _matvec(y, out_proj[layer], delta_x)
        for i in range(len(x)):
            x[i] += delta_x[i]
    _norm(x, norm_f, hidden)


@numba.njit(cache=True, nogil=True)
def _advance(weights, slots, offsets, features, clock, state, window, hidden):  # type: ignore[no-untyped-def]
    inner = state.shape[3]
    d_model = hidden.shape[1]
    x, normed, delta_x = np.zeros(d_model, np.float32), np.zeros(d_model, np.float32), np.zeros(d_model, np.float32)
    raw, u = np.zeros(2 * inner, np.float32), np.zeros(inner, np.float32)
    gap, y = np.zeros(inner, np.float32), np.zeros(inner, np.float32)
    projected = np.zeros(weights[6].shape[2], np.float32)
    for s in range(len(slots)):
        for t in range(offsets[s], offsets[s + 1]):
            _token(
                features[t],
                clock[t],
                *weights,
                state[slots[s]],
                window[slots[s]],
                x,
                normed,
                raw,
                u,
                projected,
                gap,
                y,
                delta_x,
                hidden[s],
            )


class CPUBackend:
    """Updates states on a CPU. Both arrays of a state are float32.

    ``state``: (slots, layers, d_state, d_inner).

    ``window``: (slots, layers, d_conv - 1, d_inner).
    """

    name = "cpu"

    def __init__(self, shape: MHPShape, weights: Mapping[str, NDArray[np.float32]]) -> None:
        """Take float32 weights with PyTorch's names (``mhp.blocks.0.in_proj.weight``, ...)."""
        self.shape = shape

        def stack(name: str) -> NDArray[np.float32]:
            return np.stack([weights[f"mhp.blocks.{layer}.{name}"] for layer in range(shape.n_layers)])

        def transposed(name: str) -> NDArray[np.float32]:
            return np.ascontiguousarray(stack(name).swapaxes(1, 2))

        one = np.float32(1.0)
        self._weights = (
            np.ascontiguousarray(weights["mhp.embed.weight"].T),
            weights["mhp.embed.bias"],
            stack("norm.weight"),
            transposed("in_proj.weight"),
            np.ascontiguousarray(stack("conv1d.weight")[:, :, 0].swapaxes(1, 2)),
            stack("conv1d.bias"),
            transposed("x_proj.weight"),
            transposed("dt_proj.weight"),
            stack("dt_proj.bias"),
            np.ascontiguousarray(-np.exp(stack("A_log")).swapaxes(1, 2)),
            stack("D"),
            transposed("out_proj.weight"),
            np.exp(-stack("log_tau")),
            (one / (one + np.exp(-stack("clock_mix")))).astype(np.float32),
            weights["mhp.norm_f.weight"],
        )

    def new_states(self, slots: int) -> States:
        """Return zero states for ``slots`` videos."""
        s = self.shape
        return States(
            np.zeros((slots, s.n_layers, s.d_state, s.d_inner), np.float32),
            np.zeros((slots, s.n_layers, s.d_conv - 1, s.d_inner), np.float32),
        )

    def advance(
        self,
        states: States,
        slots: NDArray[np.int64],
        offsets: NDArray[np.int64],
        features: NDArray[np.float32],
        clock: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """See Backend.advance."""
        hidden = np.zeros((len(slots), self.shape.d_model), np.float32)
        _advance(self._weights, slots, offsets, features, clock, states.state, states.window, hidden)
        return hidden
