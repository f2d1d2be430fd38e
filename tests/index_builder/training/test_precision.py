"""Training in lower precision: linear layers in bfloat16, everything else float32, and a model close to the float32 one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from index_builder.simulation.simulate import simulate
from index_builder.training.train import train
from model.bundle import Bundle, load_bundle
from model.mhp.network import MambaHawkes
from tests.model.mhp.test_network import SHAPE

pytestmark = pytest.mark.slow

AS_OF_US = 1_757_462_400_000_000
CONFIG = """epochs = 2
fusion_epochs = 2
d_model = 8
n_layers = 1
batch_tokens = 500
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision") / "data"
    simulate(folder, videos=90, seed=5, days=10, counters=True)
    return folder


def trained(data: Path, folder: Path, precision: str) -> Bundle:
    config = folder / f"{precision}.toml"
    config.write_text(f'{CONFIG}precision = "{precision}"\n', encoding="utf-8")
    train(data, as_of_us=AS_OF_US, metric="views", out=folder / precision, device="cpu", config=config)
    return load_bundle(folder / precision)


def test_training_in_bfloat16_is_close_to_float32(data: Path, tmp_path: Path) -> None:
    low, full = (trained(data, tmp_path, precision) for precision in ("bfloat16", "float32"))
    assert all(np.isfinite(value).all() for value in low.weights.values())
    assert {value.dtype for name, value in low.weights.items() if name.startswith("mhp.")} == {np.dtype("float32")}
    assert not np.array_equal(low.weights["mhp.embed.weight"], full.weights["mhp.embed.weight"])
    for stage in ("forecast", "fusion"):
        a, b = (bundle.manifest.training["passes"][stage]["held_back_loss"] for bundle in (low, full))
        assert a == pytest.approx(b, rel=0.05)


def test_the_state_stays_float32_under_autocast() -> None:
    torch.manual_seed(0)
    net, length, rows, cuts = MambaHawkes(SHAPE), 20, 3, 2
    features, clock = torch.randn(length, rows, SHAPE.n_features), torch.rand(length, rows, 2)
    branch, pending = torch.randn(rows, cuts, 2, SHAPE.n_features), torch.ones(rows, cuts, dtype=torch.bool)
    inputs = (features, clock, torch.full((rows, cuts), 15), branch, torch.rand(rows, cuts, 2, 2), pending)
    plain = net(*inputs)
    with torch.autocast("cpu", torch.bfloat16):
        lower = net(*inputs)
        assert net.blocks[0].in_proj(torch.randn(2, SHAPE.d_model)).dtype == torch.bfloat16  # type: ignore[operator]
        assert {x.dtype for x in net.blocks[0].selective(torch.randn(2, SHAPE.d_inner), torch.rand(2, 2))} == {  # type: ignore[operator]
            torch.float32
        }
    for a, b in zip(plain, lower, strict=True):
        assert b.dtype == torch.float32
        assert not torch.equal(a, b)
        assert (a - b).abs().max() < 0.1 * a.abs().max()
