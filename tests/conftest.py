"""Fixtures shared by all suites: real data, and a miniature of a real bundle trained on a simulated data set."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from index_builder.simulation.simulate import simulate
from index_builder.training.train import train
from model.engagement.bins import HOUR_US
from tests.patience import Watchdog

ROOT = Path(__file__).resolve().parent.parent
MINI_CONFIG = """epochs = 1
fusion_epochs = 1
d_model = 16
cuts_per_video = 4
bank_videos = 150
tree_rounds = 12
"""


LIMIT_S = 600.0
"""Seconds of a quiet machine's time that one test may take, its fixtures included."""
TRAINS = frozenset(("mini", "mini_bundle", "mini_metrics"))
"""Fixtures that train: a test that uses one is marked as slow."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """End a test that hangs."""
    capture = item.config.pluginmanager.getplugin("capturemanager")
    with Watchdog(item.nodeid, LIMIT_S, lambda: capture.suspend_global_capture(in_=True)):
        return (yield)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that train."""
    for item in items:
        if TRAINS.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real data sets; a machine without it skips the test, CI fails it."""
    path = Path(os.environ.get("M3TR_TEST_DATA", ROOT.parent / "shared" / "data"))
    if not path.is_dir():
        if os.environ.get("CI") == "true":
            pytest.fail(f"real data: {path} is missing; set M3TR_TEST_DATA")
        pytest.skip("no real data here; set M3TR_TEST_DATA")
    return path


@dataclass(frozen=True)
class Mini:
    """A small simulated data set, a time within it, and a bundle trained on what was known then."""

    data: Path
    bundle: Path
    as_of_us: int
    said: str = ""
    """What the training said at its end."""


def make_mini(folder: Path, metric: str | Sequence[str] = "view", *, counters: bool = False) -> Mini:
    """Simulate the data set and train the bundle, in ``folder``. About 20 s."""
    data, bundle, config = folder / "data", folder / "bundle", folder / "config.toml"
    config.write_text(MINI_CONFIG, encoding="utf-8")
    simulate(data, videos=150, seed=11, days=30, counters=counters)
    from index_builder.datasets.load import load_dataset

    as_of_us = (load_dataset(data).last_us() or 0) - 14 * 24 * HOUR_US
    said = train(data, as_of_us=as_of_us, metric=metric, out=bundle, device="cpu", seed=1, config=config)
    return Mini(data, bundle, as_of_us, said or "")


@pytest.fixture(scope="session")
def mini(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """A real bundle, small: trained, calibrated, with its bank. About 20 s."""
    return make_mini(tmp_path_factory.mktemp("mini"))


@pytest.fixture(scope="session")
def mini_metrics(tmp_path_factory: pytest.TempPathFactory) -> Mini:
    """A real bundle, small, that forecasts views and likes from counters. About 20 s."""
    return make_mini(tmp_path_factory.mktemp("metrics"), ("views", "likes"), counters=True)


@pytest.fixture(scope="session")
def mini_bundle(mini: Mini) -> Path:
    """The folder of the miniature bundle."""
    return mini.bundle
