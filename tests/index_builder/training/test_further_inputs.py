"""A bundle trained on further columns of videos.parquet and counters.parquet reads them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.bundles.forecast import forecast_at
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.simulation.simulate import simulate
from index_builder.training.train import train
from model.bundle import load_bundle
from model.engagement.attributes import attributes_of
from model.engagement.bins import HOUR_US, bin_index
from model.engagement.history import History, Readings, Series
from model.forecast import Request
from model.forecaster import Forecaster

pytestmark = pytest.mark.slow

CONFIG = """epochs = 1
fusion_epochs = 1
refit = false
exclude = ["noise", "wobble"]
"""
DAY_US = 24 * HOUR_US


def extend(path: Path, **columns: pa.Array) -> None:
    """Append columns to a Parquet file."""
    table = pq.read_table(path)
    for name, column in columns.items():
        table = table.append_column(name, column)
    pq.write_table(table, path)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated data set with counters, attributes and signals."""
    folder = tmp_path_factory.mktemp("further") / "data"
    simulate(folder, videos=120, seed=11, days=20, counters=True)
    n = 120
    extend(
        folder / "videos.parquet",
        hd=pa.array([i % 3 == 0 for i in range(n)]),
        regions=pa.array([("at", "de")[: 1 + i % 2] for i in range(n)]),
        score=pa.array(np.arange(n) % 17 / 4),
        mood=pa.array([("calm", "loud", None)[i % 3] for i in range(n)]),
        noise=pa.array(np.arange(n) % 5 / 2),
    )
    rows = pq.read_metadata(folder / "counters.parquet").num_rows
    rng = np.random.default_rng(4)
    extend(
        folder / "counters.parquet",
        rank=pa.array(rng.integers(1, 50, rows)),
        wobble=pa.array(rng.random(rows)),
        comment_text=pa.array(["x"] * rows),
    )
    return folder


@pytest.fixture(scope="module")
def bundle(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that reads the further columns."""
    folder = tmp_path_factory.mktemp("bundle")
    (folder / "config.toml").write_text(CONFIG, encoding="utf-8")
    as_of_us = (load_dataset(data).last_us() or 0) - 7 * DAY_US
    train(
        data,
        as_of_us=as_of_us,
        metric="views",
        out=folder / "bundle",
        device="cpu",
        seed=1,
        config=folder / "config.toml",
    )
    return folder / "bundle"


def test_a_bundle_declares_and_reads_its_further_inputs(data: Path, bundle: Path) -> None:
    schema = load_bundle(bundle).manifest.schema
    assert [(a.name, a.kind) for a in schema.attributes] == [
        ("hd", "boolean"),
        ("mood", "category"),
        ("regions", "list"),
        ("score", "number"),
    ]
    assert [signal.name for signal in schema.signals] == ["rank"]
    video = load_dataset(data).videos[0]
    age_us = 6 * HOUR_US
    bins = np.unique(bin_index(np.array([1, 3, 5]) * HOUR_US))
    values = {"hd": True, "mood": "loud", "regions": ["at"], "score": 3.5}

    def asked(rank: tuple[float, ...] = (30, 20, 10), **changed: object) -> Request:
        known = replace(video, attributes=attributes_of({**values, **changed}))
        signals = {"rank": Readings(bins, np.array(rank)), "wobble": Readings(bins, np.array(rank))} if rank else {}
        history = History({"view": Series("counters", bins, np.array([3, 40, 70]))}, {}, signals)
        return Request(known, history, video.published_us + age_us, (HOUR_US, DAY_US))

    requests = [
        asked(),
        asked(hd=False),
        asked(mood="calm"),
        asked(regions=["de"]),
        asked(score=0.0),
        asked(rank=(30, 20, 45)),
        asked(rank=(5, 20, 10)),
        asked(rank=()),
        asked(noise=1.0),
        asked(mood="loud-and-more"),
    ]
    forecaster = Forecaster.load(bundle, device="cpu")
    try:
        together = [made.quantiles for made in forecaster.forecast(requests)]
        alone = [forecaster.forecast([request])[0].quantiles for request in requests]
    finally:
        forecaster.close()
    np.testing.assert_array_equal(np.stack(together), np.stack(alone))
    differs = [not np.array_equal(made, together[0]) for made in together]
    assert differs == [False, *[True] * 7, False, False]


def test_offline_forecasts_read_the_signals_of_the_data(data: Path, bundle: Path) -> None:
    loaded = load_dataset(data)
    observed = Observed.of(loaded, "views")
    video = np.flatnonzero(np.diff(loaded.signals["rank"].offsets) > 5)[:8]
    now_us = loaded.published_us[video] + 20 * HOUR_US
    horizon_us = np.full(len(video), DAY_US)
    forecaster = Forecaster.load(bundle, device="cpu")
    try:
        made = forecast_at(forecaster, observed, video, now_us, horizon_us)
        rows = replace(loaded.signals["rank"], value=loaded.signals["rank"].value * 0 + 49)
        other = replace(observed, data=replace(loaded, signals={"rank": rows}))
        changed = forecast_at(forecaster, other, video, now_us, horizon_us)
        # What is read after now changes nothing.
        late = np.repeat(now_us, 1)
        later = loaded.signals["rank"].value.copy()
        later[loaded.signals["rank"].time_us > late.max()] = 1
        same = replace(loaded, signals={"rank": replace(loaded.signals["rank"], value=later)})
        unchanged = forecast_at(forecaster, replace(observed, data=same), video, now_us, horizon_us)
    finally:
        forecaster.close()
    assert not np.array_equal(made, changed)
    np.testing.assert_array_equal(made, unchanged)


def test_the_inputs_are_printed_before_training(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Begun(Exception):
        pass

    def begin(*arguments: object) -> None:
        raise Begun

    monkeypatch.setattr("index_builder.training.train._sentences", begin)
    (tmp_path / "config.toml").write_text(CONFIG, encoding="utf-8")
    last_us = load_dataset(data).last_us() or 0
    with pytest.raises(Begun):
        train(data, as_of_us=last_us, metric="views", out=tmp_path / "out", config=tmp_path / "config.toml")
    printed = " ".join(capsys.readouterr().err.split())
    assert "further inputs: hd (boolean), mood (category of 2 values), regions (list of 2 values)" in printed
    assert "rank (signal, falls in" in printed
    assert "columns not read: noise (not chosen in the settings), wobble (not chosen in the settings)" in printed
    assert "comment_text (is string)" in printed
