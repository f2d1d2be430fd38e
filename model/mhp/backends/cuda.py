"""The serving backend on CUDA, with mamba-ssm's kernels.

mamba-ssm computes z <- exp(dt A) z + dt B x. Our state decays by D and jumps by w B. So the kernels get dt = D and x
= w / D, which gives the same equation for any D > 0. States are stored in slots, and a step updates the slots in
place by their indices.

If a slot has many unread tokens, they are read by one scan. mamba-ssm's scan starts from zero, so the initial state
is given as d_state additional tokens before the first token. Each additional token adds one component of the state
and does not decay the state.

A step consists of about sixty small kernels. Launching them takes far longer than running them. So the step for a
group of slots, called a wave, is recorded once as a CUDA graph. Each later step replays this graph with one launch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from model.mhp.backend import States
from model.mhp.network import MambaBlock, MambaHawkes
from model.mhp.shape import MHPShape

SCAN_FROM: Final = 8
"""Minimum number of tokens that a slot reads by a scan. Fewer tokens are read step by step."""
_MIN_GAP: Final = 1e-6
"""Smallest gap D. This limit keeps x = w / D finite. In float32, the decay exp(-1e-6 |A|) is 1."""
_NO_GAP: Final = 1e-8
"""Gap of the tokens that set the initial state. The total decay over sixteen such gaps is too small for float32 to resolve."""
_WAVES: Final = (1, 8, 32, 128, 512)
"""Sizes of the waves, in rows. Each row takes one slot. If there are fewer slots than rows, the wave is padded."""


class Kernels(NamedTuple):
    """The kernels of mamba-ssm: the step ``selective_state_update`` and the scan ``selective_scan_fn``."""

    update: Any
    scan: Any

    @classmethod
    def of_mamba_ssm(cls) -> Kernels:
        """Return the kernels of the installed mamba-ssm. Raise ImportError if it is not installed."""
        from mamba_ssm.ops.selective_scan_interface import selective_scan_fn
        from mamba_ssm.ops.triton.selective_state_update import selective_state_update

        return cls(selective_state_update, selective_scan_fn)


class Wave:
    """A CUDA graph of the step that reads one token into each of up to ``rows`` slots. Unneeded rows use a spare slot."""

    def __init__(self, rows: int, shape: MHPShape, spare: int, device: torch.device) -> None:
        self.slots = torch.full((rows,), spare, device=device)
        self.tokens = torch.zeros(rows, shape.n_features + 2, device=device)
        self.hidden = torch.zeros(rows, shape.d_model, device=device)
        self._n_features, self._spare = shape.n_features, spare
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def features(self) -> Tensor:
        """Features of the tokens, (rows, F) float32."""
        return self.tokens[:, : self._n_features]

    @property
    def clock(self) -> Tensor:
        """Clock of the tokens, (rows, 2) float32."""
        return self.tokens[:, self._n_features :]

    def record(self, work: Callable[[Wave], None]) -> None:
        """Record ``work`` as a CUDA graph. ``work`` reads ``slots``, ``features`` and ``clock`` and writes ``hidden``."""
        self._work = work
        if self.slots.device.type != "cuda":
            return
        # Run the work before recording it, so that kernels are compiled and libraries allocate memory. PyTorch requires a separate
        # stream for this.
        side, here = torch.cuda.Stream(self.slots.device), torch.cuda.current_stream(self.slots.device)
        side.wait_stream(here)
        with torch.cuda.stream(side):
            for _ in range(2):
                work(self)
        here.wait_stream(side)
        self._graph = torch.cuda.CUDAGraph()
        # Other threads may use the GPU while the graph is recorded.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            work(self)

    def run(
        self, slots: NDArray[np.int64], features: NDArray[np.float32], clock: NDArray[np.float32]
    ) -> NDArray[np.float32]:
        """Read one token into each of n distinct slots. Return the hidden states (n, d_model), which are valid until the next run.

        ``features`` has the shape (n, F), and ``clock`` has the shape (n, 2).
        """
        n = len(slots)
        every = np.full(len(self.slots), self._spare)
        every[:n] = slots
        self.slots.copy_(torch.from_numpy(every))
        self.tokens[:n].copy_(torch.from_numpy(np.concatenate([features, clock], axis=1)))
        if self._graph is None:
            self._work(self)
        else:
            self._graph.replay()
        out: NDArray[np.float32] = self.hidden[:n].cpu().numpy()
        return out


@dataclass(frozen=True, slots=True)
class TensorStates(States):
    """States as tensors. ``whole`` holds ``state`` and ``window`` with one additional spare slot."""

    whole: tuple[Tensor, Tensor]
    waves: dict[int, Wave] = field(default_factory=dict)

    def take_slot(self, slot: int) -> tuple[Tensor, Tensor]:
        """Return a copy of one slot."""
        return self.state[slot].clone(), self.window[slot].clone()

    def copy_slots(self, rows: list[int], source: States, slots: list[int]) -> None:
        """Copy the slots ``slots`` of ``source`` into the slots ``rows`` of these states."""
        to, of = (torch.tensor(index, device=self.state.device) for index in (rows, slots))
        self.state[to], self.window[to] = source.state[of], source.window[of]


class CUDABackend:
    """Updates states on a GPU. A wave reads at most one token into each slot.

    ``state`` has the shape (slots, layers, d_inner, d_state), and ``window`` has the shape (slots, layers, d_inner,
    d_conv - 1). Both are float32.
    """

    name = "cuda"

    def __init__(
        self,
        shape: MHPShape,
        weights: Mapping[str, NDArray[np.float32]],
        *,
        device: str = "cuda",
        kernels: Kernels | None = None,
    ) -> None:
        """Take float32 weights with PyTorch's names (``mhp.blocks.0.in_proj.weight``, ...)."""
        self.shape = shape
        self._kernels = kernels or Kernels.of_mamba_ssm()
        self._device = torch.device(device)
        net = MambaHawkes(shape)
        net.load_state_dict(
            {
                name.removeprefix("mhp."): torch.from_numpy(value.copy())
                for name, value in weights.items()
                if name.startswith("mhp.")
            }
        )
        self._net = net.eval().to(self._device)
        self._blocks = [block for block in self._net.blocks if isinstance(block, MambaBlock)]
        # mamba-ssm's step raises TypeError without D and dt_bias. Zeros are passed, because ``emit`` and ``selective`` apply D and
        # dt_bias themselves.
        self._zeros = torch.zeros(shape.d_inner, device=self._device)

    def new_states(self, slots: int) -> States:
        """Return zero states for ``slots`` videos."""
        s = self.shape
        state = torch.zeros(slots + 1, s.n_layers, s.d_inner, s.d_state, device=self._device)
        window = torch.zeros(slots + 1, s.n_layers, s.d_inner, s.d_conv - 1, device=self._device)
        return TensorStates(state[:-1], window[:-1], (state, window))

    @torch.no_grad()
    def advance(
        self,
        states: States,
        slots: NDArray[np.int64],
        offsets: NDArray[np.int64],
        features: NDArray[np.float32],
        clock: NDArray[np.float32],
    ) -> NDArray[np.float32]:
        """See Backend.advance."""
        assert isinstance(states, TensorStates)
        hidden = np.zeros((len(slots), self.shape.d_model), np.float32)
        lengths, starts = np.diff(offsets), offsets[:-1]
        long = np.flatnonzero(lengths >= SCAN_FROM)
        if len(long):
            # Each row is padded at its end with copies of its last token. The padding is masked.
            at = starts[long, None] + np.minimum(np.arange(lengths[long].max()), lengths[long, None] - 1)
            scanned = self._scan(
                states, self._put(slots[long]), self._put(features[at]), self._put(clock[at]), self._put(lengths[long])
            )
            hidden[long] = scanned.cpu().numpy()
        for step in range(int(lengths[lengths < SCAN_FROM].max(initial=0))):
            rows = np.flatnonzero((lengths > step) & (lengths < SCAN_FROM))
            for first in range(0, len(rows), _WAVES[-1]):
                part = rows[first : first + _WAVES[-1]]
                at = starts[part] + step
                hidden[part] = self._wave(states, len(part)).run(slots[part], features[at], clock[at])
        return hidden

    def _put(self, array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device)

    def _wave(self, states: TensorStates, rows: int) -> Wave:
        """Return the smallest recorded wave with at least ``rows`` rows."""
        size = next(size for size in _WAVES if size >= rows)
        if size not in states.waves:
            wave = Wave(size, self.shape, len(states.state), self._device)
            wave.record(lambda wave: self._step(states.whole, wave))
            states.waves[size] = wave
        return states.waves[size]

    @torch.no_grad()
    def _step(self, whole: tuple[Tensor, Tensor], wave: Wave) -> None:
        """Read one token into each slot of a wave."""
        slots, x = wave.slots, self._net.embed(wave.features)
        for layer, block in enumerate(self._blocks):
            state, window = whole[0][:, layer], whole[1][:, layer]
            raw, gate, u = block.convolve(x, window[slots])
            window[slots] = torch.cat([window[slots][..., 1:], raw.unsqueeze(-1)], dim=-1)
            gap, jump, b, c = block.selective(u, wave.clock)
            dt = gap.clamp(min=_MIN_GAP)
            y = self._kernels.update(
                state,
                jump / dt,
                dt,
                -torch.exp(block.A_log),
                b,
                c,
                D=self._zeros,
                dt_bias=self._zeros,
                # The indices are int64, because the kernel multiplies them by the size of a state.
                state_batch_indices=slots,
            )
            x = block.emit(x, u, gate, y)
        wave.hidden.copy_(self._net.norm_f(x))

    def _scan(self, states: States, slots: Tensor, features: Tensor, clock: Tensor, lengths: Tensor) -> Tensor:
        """Read tokens into N slots. Return the hidden state after the last token of each slot, (N, d_model).

        ``features`` has the shape (N, L, F), and ``clock`` has the shape (N, L, 2). Slot i has ``lengths[i]`` >= 1
        tokens.
        """
        length = features.shape[1]
        every = torch.arange(len(slots), device=self._device)
        is_token = (torch.arange(length, device=self._device) < lengths[:, None]).unsqueeze(-1)
        x = self._net.embed(features)
        for layer, block in enumerate(self._blocks):
            raw, gate = block.in_proj(block.norm(x)).chunk(2, dim=-1)
            padded = torch.cat([states.window[slots, layer].transpose(1, 2), raw], dim=1)
            taps = block.conv1d.weight.squeeze(1)
            mixed = block.bias.expand(raw.shape)
            for k in range(taps.shape[1]):
                mixed = mixed + padded[:, k : k + length] * taps[:, k]
            u = F.silu(mixed)
            gap, jump, b, c = block.selective(u, clock)
            dt = gap.clamp(min=_MIN_GAP)
            y, states.state[slots, layer] = self._resume(
                states.state[slots, layer],
                torch.where(is_token, jump / dt, 0),
                torch.where(is_token, dt, 0),
                block,
                b,
                c,
            )
            newest = lengths[:, None] + torch.arange(padded.shape[1] - length, device=self._device)
            states.window[slots, layer] = padded[every[:, None], newest].transpose(1, 2)
            x = block.emit(x, u, gate, y)
        out: Tensor = self._net.norm_f(x)[every, lengths - 1]
        return out

    def _resume(
        self, state: Tensor, x: Tensor, dt: Tensor, block: MambaBlock, b: Tensor, c: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scan from ``state`` (N, d_inner, n). Return y (N, L, d_inner) and the new state.

        ``x`` and ``dt`` have the shape (N, L, d_inner). ``b`` and ``c`` have the shape (N, L, n).
        """
        rows, _, n = state.shape
        identity = torch.eye(n, device=self._device).expand(rows, n, n)
        y, after = self._kernels.scan(
            torch.cat([state / _NO_GAP, x.transpose(1, 2)], dim=-1),
            torch.cat([torch.full_like(state, _NO_GAP), dt.transpose(1, 2)], dim=-1),
            -torch.exp(block.A_log),
            torch.cat([identity, b.transpose(1, 2)], dim=-1),
            torch.cat([torch.zeros_like(identity), c.transpose(1, 2)], dim=-1),
            return_last_state=True,
        )
        return y[..., n:].transpose(1, 2), after
