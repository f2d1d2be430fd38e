"""A part that is switched off has no effect in the served model: if its inputs change, no bit of a forecast changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index_builder.bundles.forecast import histories
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.training.train import train
from model.ablation import Ablation
from model.bank import Bank, BankQuery, Candidate, EmbeddedBank, EmptyBank
from model.bundle import BANK, Bundle, load_bundle
from model.engagement.bins import HOUR_US
from model.engagement.rows import cells_at
from model.errors import BankError, DataError
from model.forecast import Forecast, Request
from model.forecaster import Forecaster
from model.quantiles.head import HIGH
from tests.conftest import MINI_CONFIG, Mini

pytestmark = pytest.mark.slow

ARMS = ("mhp", "trajectory", "retrieval", "content")


@pytest.fixture(scope="module", params=ARMS)
def arm(request: pytest.FixtureRequest, mini: Mini, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """A bundle trained without one part. About 8 s."""
    folder = tmp_path_factory.mktemp(request.param)
    config = folder / "config.toml"
    config.write_text(f"{MINI_CONFIG}refit = false\nuse_{request.param} = false\n", encoding="utf-8")
    train(
        mini.data,
        as_of_us=mini.as_of_us,
        metric="view",
        out=folder / "bundle",
        device="cpu",
        seed=1,
        config=config,
    )
    return request.param, folder / "bundle"


@pytest.fixture(scope="module")
def asked(mini: Mini) -> list[Request]:
    """Real requests for videos without creator, so that the bank is asked only for neighbours."""
    data = load_dataset(mini.data, before_us=mini.as_of_us)
    observed = Observed.of(data, "view")
    rows = np.arange(len(data.videos) - 30, len(data.videos))
    now = np.full(len(rows), mini.as_of_us)
    cells = cells_at(observed.events, observed.counters, rows, now, data.published_us[rows], len(data.types))
    return [
        Request(replace(data.videos[v], creator_id=None), history, mini.as_of_us, (HOUR_US, 24 * HOUR_US))
        for v, history in zip(rows, histories(cells, data.types), strict=True)
    ]


def answers(bundle: Bundle, asked: list[Request], bank: Bank | None = None) -> list[Forecast]:
    """A forecaster on a bundle in memory, with its own bank or another."""
    dims = bundle.dims
    forecaster = Forecaster(bundle, bank or EmbeddedBank.open(bundle.path / BANK, *dims), device="cpu")
    try:
        return forecaster.forecast(asked)
    finally:
        forecaster.close()


def scaled(bundle: Bundle, wanted: Callable[[str], bool]) -> Bundle:
    """The bundle with changed weights."""
    return replace(
        bundle, weights={name: value * 3 if wanted(name) else value for name, value in bundle.weights.items()}
    )


class HungBank(EmptyBank):
    """A bank that knows creators and fails when it is asked for neighbours."""

    def search(self, queries: list[BankQuery]) -> list[list[Candidate]]:  # type: ignore[override]
        raise BankError("search: no answer")


def changes(name: str, bundle: Bundle, asked: list[Request]) -> Iterator[list[Forecast]]:
    """Forecasts after the part, or what it reads, was changed."""
    if name == "mhp":
        yield answers(scaled(bundle, lambda w: w.startswith(("mhp.", "intensity."))), asked)
    elif name == "trajectory":
        yield answers(scaled(bundle, lambda w: w == "trajectory.centre"), asked)
    elif name == "retrieval":
        yield answers(bundle, asked, EmptyBank())
        hung: Any = HungBank()
        yield answers(bundle, asked, hung)
    else:
        others: dict[str, Any] = {
            "title": "another title",
            "tags": "other",
            "category": None,
            "language": "xx",
            "duration_s": 1.0,
        }
        yield answers(bundle, [replace(r, video=replace(r.video, **others)) for r in asked])


def same(a: list[Forecast], b: list[Forecast]) -> bool:
    return all(np.array_equal(x.quantiles, y.quantiles) for x, y in zip(a, b, strict=True))


def test_a_part_that_is_switched_off_has_no_effect(arm: tuple[str, Path], asked: list[Request]) -> None:
    name, folder = arm
    bundle = load_bundle(folder)
    assert bundle.manifest.parts == Ablation(**{name: False})
    made = answers(bundle, asked)
    assert not any(answer.degraded for answer in made)
    assert len({float(answer.quantiles[-1, HIGH]) for answer in made}) > 0.8 * len(asked)
    for changed in changes(name, bundle, asked):
        assert same(made, changed)
        assert not any(answer.degraded for answer in changed)


@pytest.mark.parametrize("name", ARMS)
def test_each_change_affects_the_whole_model(name: str, mini_bundle: Path, asked: list[Request]) -> None:
    bundle = load_bundle(mini_bundle)
    made = answers(bundle, asked)
    assert not any(same(made, changed) for changed in changes(name, bundle, asked))


def test_neighbours_are_found_with_the_remaining_vectors(arm: tuple[str, Path], asked: list[Request]) -> None:
    name, folder = arm
    bundle = load_bundle(folder)
    bank = EmbeddedBank.open(folder / BANK, *bundle.dims)
    counts = bank.counts()
    bank.close()
    assert counts["videos"] > 100
    assert bool(counts["trajectories"]) == (name in ("content", "mhp"))
    found = [neighbour for answer in answers(bundle, asked) for neighbour in answer.neighbours]
    assert bool(found) == (name != "retrieval")
    assert {neighbour.content_similarity is None for neighbour in found} <= {name == "content"}
    if name != "mhp":
        assert {neighbour.trajectory_similarity is None for neighbour in found} <= {name != "content"}
        assert bundle.manifest.content_weight == (0.0 if name == "content" else 1.0)
    assert answers(bundle, asked)[-1].intensity.keys() == {"view", "like", "comment", "share"}


def test_a_bundle_without_recorded_switches_has_every_part(mini_bundle: Path) -> None:
    import json

    from model import bundle as module

    body = json.loads((mini_bundle / "manifest.json").read_text(encoding="utf-8"))
    del body["parts"]
    body["version"] = module._version(body)
    old = mini_bundle.parent / "old"
    old.mkdir()
    for name in (*module.FILES, module.TREES):
        (old / name).symlink_to(mini_bundle / name)
    (old / "manifest.json").write_text(json.dumps(body), encoding="utf-8")
    assert load_bundle(old).manifest.parts == Ablation()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("use_mhp = 1", "use_mhp: 1; allowed: true, false"),
        ("precision = 'half'", "precision: 'half'; allowed: auto, float32, bfloat16"),
        ("patience = -1", "patience: -1; allowed: a whole number from 0 to 1000"),
    ],
)
def test_a_switch_with_a_wrong_value_is_named(setting: str, message: str, mini: Mini, tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text(setting, encoding="utf-8")
    with pytest.raises(DataError, match=message):
        train(mini.data, as_of_us=mini.as_of_us, metric="view", out=tmp_path / "b", config=config)
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]
