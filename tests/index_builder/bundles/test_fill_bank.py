"""What goes into a bank, and the time from which it may be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from index_builder.bundles.index import index
from index_builder.simulation.simulate import simulate
from model.bank import EmbeddedBank
from model.bundle import load_bundle
from model.engagement.bins import HOUR_US
from model.growth.curve_kernels import N_CURVE
from model.growth.curves import Curves, usable_from
from tests.conftest import Mini

NEVER = np.iinfo(np.int64).max


def short_curves(*ages_h: list[int]) -> Curves:
    ages = np.zeros((len(ages_h), N_CURVE), np.int64)
    for row, values in zip(ages, ages_h, strict=True):
        row[: len(values)] = np.array(values) * HOUR_US
    return Curves(ages, np.ones_like(ages), np.array([len(values) for values in ages_h]))


def test_a_curve_is_usable_from_its_first_point_after_the_age() -> None:
    curves = short_curves([10, 30, 60], [10], [10, 30], [])
    published = np.array([5, 6, 7, 8])
    after = np.array([10, 10, 30, 0]) * HOUR_US
    assert usable_from(curves, published, after).tolist() == [5 + 30 * HOUR_US, NEVER, NEVER, NEVER]


def test_a_full_curve_is_never_usable_after_its_end() -> None:
    curves = short_curves(list(range(1, N_CURVE + 1)))
    assert usable_from(curves, np.array([0]), np.array([N_CURVE * HOUR_US])).tolist() == [NEVER]


def test_counters_make_usable_trajectories(mini: Mini, tmp_path: Path) -> None:
    simulate(tmp_path / "data", videos=100, seed=3, days=20, counters=True)
    index(mini.bundle, tmp_path / "data", as_of_us=mini.as_of_us + 365 * 24 * HOUR_US, bank=tmp_path / "bank")
    loaded = load_bundle(mini.bundle)
    bank = EmbeddedBank.open(tmp_path / "bank", *loaded.dims)
    try:
        counts = bank.counts()
    finally:
        bank.close()
    assert counts["videos"] > 50
    assert counts["trajectories"] > counts["videos"]
