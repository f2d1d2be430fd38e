"""The gradient boosting baseline learns what can be learned, and reads nothing later than it may."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest

from index_builder.baselines.boosting import boosted
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.evaluate import evaluate
from index_builder.samples.queries import Queries, cut_queries
from index_builder.scoring.metrics import nmse
from model.bundle import load_bundle
from model.errors import DataError
from model.features.schema import Schema
from tests.conftest import Mini

pytestmark = pytest.mark.slow

HORIZONS_H = (6.0, 24.0)


@pytest.fixture(scope="module", autouse=True)
def lightgbm() -> None:
    """Skips on a machine without the OpenMP library; CI has it."""
    try:
        import lightgbm  # noqa: F401
    except OSError as error:
        if os.environ.get("CI") == "true":
            pytest.fail(str(error))
        pytest.skip(str(error))


@pytest.fixture(scope="module")
def task(mini: Mini) -> tuple[Observed, Observed, Queries, Schema]:
    """The data known at the bundle's as-of time, all data, and queries of videos published later."""
    past = Observed.of(load_dataset(mini.data, before_us=mini.as_of_us), "view")
    observed = Observed.of(load_dataset(mini.data), "view")
    young = np.flatnonzero(observed.data.published_us >= mini.as_of_us - 5 * 86_400_000_000)
    queries = cut_queries(observed, young, (3.0, 12.0), HORIZONS_H, observed.data.last_us() or 0)
    return past, observed, queries, load_bundle(mini.bundle).manifest.schema


def test_boosting_beats_the_mean_and_its_quantiles_are_ordered(
    mini: Mini, task: tuple[Observed, Observed, Queries, Schema]
) -> None:
    past, observed, queries, schema = task
    growth = boosted(past, observed, queries, schema, mini.as_of_us)
    assert growth.shape == (len(queries.video), 4) and len(queries.video) > 40
    assert (growth[:, 1] <= growth[:, 2]).all() and (growth[:, 2] <= growth[:, 3]).all() and (growth >= 0).all()
    assert nmse(queries.pairs.growth, growth[:, 0]) < 0.8
    assert (growth[:, 0] != growth[:, 2]).any()
    again = boosted(past, observed, queries, schema, mini.as_of_us)
    np.testing.assert_array_equal(again, growth)


def test_evaluate_compares_the_model_and_boosting_in_pairs(
    mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = evaluate(
        mini.bundle,
        mini.data,
        published_from_us=mini.as_of_us - 5 * 86_400_000_000,
        ages_h=(3.0, 12.0),
        horizons_h=HORIZONS_H,
        boosting=True,
        report=tmp_path / "page.html",
    )
    minus = table["M3TR"]["pooled"]["minus"]["gradient boosting"]
    for name, key in (("nMSE", "nmse"), ("pinball", "pinball")):
        value = table["M3TR"]["pooled"][key] - table["gradient boosting"]["pooled"][key]
        assert np.isclose(minus[name]["value"], value) and minus[name]["low"] < value < minus[name]["high"]
    shown = f"{minus['nMSE']['value']:+.4f} ({minus['nMSE']['low']:+.4f}"
    assert "M3TR minus gradient boosting" in " ".join(capsys.readouterr().out.split())
    assert shown in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_without_lightgbm_the_error_says_how_to_install_it(
    mini: Mini, task: tuple[Observed, Observed, Queries, Schema], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "lightgbm", None)
    with pytest.raises(DataError, match="pip install lightgbm"):
        boosted(*task, mini.as_of_us)
