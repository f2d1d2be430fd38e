"""Backends of the Mamba-Hawkes state: a step, a batch of 64 steps, and a scan of 700 tokens.

    python -m benchmarks.components.steps [--d-model 64] [--layers 2]

"compiled" is the serving kernel (numba). "PyTorch" has the same equations as tensor operations, on one thread. "ONNX Runtime" has
those operations as an exported graph, on one thread. With a CUDA device and mamba-ssm its kernels are measured too. "pool" is what the
service pays: one more token of a video with 700 tokens, and the same for 64 videos in one call.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnxruntime as ort
import torch
from torch import Tensor, nn

from model.engagement.bins import EDGES_US
from model.engagement.cells import EVENT_MODE, Cells
from model.features.tokens import Tokens, n_features, tokenize
from model.mhp.backend import Backend
from model.mhp.backends.cpu import CPUBackend
from model.mhp.backends.cuda import CUDABackend
from model.mhp.network import MambaBlock, MambaHawkes
from model.mhp.shape import MHPShape
from model.mhp.state_pool import StatePool

TYPES, LONG, WAVE = 3, 700, 64


def micros(work: Callable[[], object], calls: int, prepare: Callable[[], object] = lambda: None) -> float:
    """Median microseconds of a call, from 9 repetitions."""
    work()
    repetitions = []
    for _ in range(9):
        prepare()
        start = time.perf_counter()
        for _ in range(calls):
            work()
        repetitions.append((time.perf_counter() - start) / calls)
    return statistics.median(repetitions) * 1e6


class Step(nn.Module):
    """One token of N slots by tensor operations: states in, states out."""

    def __init__(self, net: MambaHawkes) -> None:
        super().__init__()
        self.net = net

    def forward(self, features: Tensor, clock: Tensor, state: Tensor, window: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(N, F), (N, 2), (N, layers, inner, n), (N, layers, inner, conv - 1) -> hidden (N, d), state, window."""
        x = self.net.embed(features)
        states, windows = [], []
        for layer, block in enumerate(self.net.blocks):
            assert isinstance(block, MambaBlock)
            raw, gate, u = block.convolve(x, window[:, layer])
            gap, jump, b, c = block.selective(u, clock)
            decay = torch.exp(gap.unsqueeze(-1) * -torch.exp(block.A_log))
            z = decay * state[:, layer] + jump.unsqueeze(-1) * b.unsqueeze(-2)
            x = block.emit(x, u, gate, (z * c.unsqueeze(-2)).sum(-1))
            states.append(z)
            windows.append(torch.cat([window[:, layer, :, 1:], raw.unsqueeze(-1)], dim=-1))
        return self.net.norm_f(x), torch.stack(states, 1), torch.stack(windows, 1)


def inputs(shape: MHPShape, n: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.randn(n, shape.n_features),
        torch.rand(n, 2),
        torch.zeros(n, shape.n_layers, shape.d_inner, shape.d_state),
        torch.zeros(n, shape.n_layers, shape.d_inner, shape.d_conv - 1),
    )


def graph(step: Step, shape: MHPShape) -> ort.InferenceSession:
    """The step as an ONNX graph."""
    names = ["features", "clock", "state", "window"]
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        batch = torch.export.Dim("batch", min=2, max=1 << 16)
        program = torch.onnx.export(
            step,
            kwargs=dict(zip(names, inputs(shape, 4), strict=True)),
            input_names=names,
            dynamo=True,
            verbose=False,
            dynamic_shapes={name: {0: batch} for name in names},
        )
        assert program is not None
        program.save(Path(folder) / "step.onnx")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        return ort.InferenceSession(Path(folder) / "step.onnx", options, providers=["CPUExecutionProvider"])


def history(videos: int, tokens: int) -> Tokens:
    """Tokens of videos with engagement in each of their first bins."""
    zero = np.zeros(videos * tokens, np.int64)
    published = np.full(videos, 1_760_000_000_000_000)
    cells = Cells(
        np.arange(videos + 1) * tokens, np.tile(np.arange(tokens), videos), zero, zero + 3, zero + EVENT_MODE, zero
    )
    return tokenize(cells, published, published + EDGES_US[tokens] + 1, TYPES)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--d-model", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shape = MHPShape(n_features(TYPES), TYPES, args.d_model, args.layers)
    net = MambaHawkes(shape).eval()
    weights = {f"mhp.{name}": value.numpy() for name, value in net.state_dict().items()}
    kernel = CPUBackend(shape, weights)
    rng = np.random.default_rng(0)
    features = rng.normal(size=(LONG, shape.n_features)).astype(np.float32)
    clock = rng.random((LONG, 2)).astype(np.float32)
    states = kernel.new_states(WAVE)
    every, one = np.arange(WAVE), np.array([0])

    def advance(slots: np.ndarray, offsets: np.ndarray, n: int) -> Callable[[], object]:
        return lambda: kernel.advance(states, slots, offsets, features[:n], clock[:n])

    rows = {
        "compiled": (
            micros(advance(one, np.array([0, 1]), 1), 1000),
            micros(advance(every, np.arange(WAVE + 1), WAVE), 30),
            micros(advance(one, np.array([0, LONG]), LONG), 3),
        )
    }
    step = Step(net)
    single, wave = inputs(shape, 1), inputs(shape, WAVE)
    with torch.inference_mode():
        times = micros(lambda: step(*single), 50), micros(lambda: step(*wave), 20)

        def scan() -> None:
            state, window = single[2], single[3]
            for t in range(LONG):
                _, state, window = step(
                    torch.from_numpy(features[t : t + 1]), torch.from_numpy(clock[t : t + 1]), state, window
                )

        rows["PyTorch"] = (*times, micros(scan, 1))
    session = graph(step, shape)
    feeds = [
        {name: part.numpy() for name, part in zip(("features", "clock", "state", "window"), parts, strict=True)}
        for parts in (single, wave)
    ]
    runs = [micros(lambda feed=feed: session.run(None, feed), 50) for feed in feeds]  # type: ignore[misc]
    rows["ONNX Runtime"] = (runs[0], runs[1], runs[0] * LONG)
    backends: dict[str, Backend] = {"compiled": kernel}
    if torch.cuda.is_available():
        gpu = CUDABackend(shape, weights)
        slots = gpu.new_states(WAVE)
        backends["mamba-ssm"] = gpu

        def on_gpu(which: np.ndarray, offsets: np.ndarray, n: int) -> Callable[[], object]:
            # The result is copied to the CPU, so the GPU has finished.
            return lambda: gpu.advance(slots, which, offsets, features[:n], clock[:n])

        rows["mamba-ssm"] = (
            micros(on_gpu(one, np.array([0, 1]), 1), 50),
            micros(on_gpu(every, np.arange(WAVE + 1), WAVE), 50),
            micros(on_gpu(one, np.array([0, LONG]), LONG), 20),
        )
    print(f"d_model {args.d_model}, {args.layers} layers; microseconds")
    print(
        f"{'backend':14}{'step':>10}{'wave of 64':>12}{'a token':>10}{'rate/step':>11}{'scan 700':>12}{'scan/step':>11}"
    )
    for name, (alone, together, long) in rows.items():
        each = together / WAVE
        print(f"{name:14}{alone:10.1f}{together:12.1f}{each:10.1f}{alone / each:11.2f}{long:12.0f}{long / alone:11.0f}")
    behind, ahead = history(1, LONG), history(1, LONG + 1)
    many, more = history(WAVE, LONG), history(WAVE, LONG + 1)
    names = [f"v{i}" for i in range(WAVE)]
    for name, backend in backends.items():
        pool = StatePool(backend, 2 * WAVE)

        def again(ids: list[str], tokens: Tokens, pool: StatePool = pool) -> Callable[[], object]:
            def prepare() -> None:
                for video_id in ids:
                    pool.forget(video_id)
                pool.read(ids, tokens)

            return prepare

        cold = micros(lambda backend=backend: StatePool(backend, 0).read(names[:1], ahead), 1)  # type: ignore[misc]
        warm = micros(lambda pool=pool: pool.read(names[:1], ahead), 1, again(names[:1], behind))  # type: ignore[misc]
        waves = micros(lambda pool=pool: pool.read(names, more), 1, again(names, many))  # type: ignore[misc]
        print(
            f"pool, {name}: from scratch {cold:.0f}, one more token and a read {warm:.1f} ({cold / warm:.0f} times "
            f"cheaper); 64 videos {waves:.0f}, {waves / WAVE:.1f} each ({warm * WAVE / waves:.1f} times the rate)"
        )


if __name__ == "__main__":
    main()
