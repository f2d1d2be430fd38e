"""A bundle trained on further columns of videos.parquet reads them, in the builder and in the service alike."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from index_builder.datasets.load import load_dataset
from index_builder.training.train import train
from model.bundle import load_bundle
from model.engagement.attributes import attributes_of
from model.engagement.bins import HOUR_US
from model.engagement.history import History, Series
from model.forecast import Request
from model.forecaster import Forecaster
from tests.conftest import Mini

pytestmark = pytest.mark.slow

CONFIG = """epochs = 1
fusion_epochs = 1
refit = false
exclude = ["noise"]
"""


def test_a_trained_bundle_reads_its_attributes(mini: Mini, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, out, config = tmp_path / "data", tmp_path / "bundle", tmp_path / "config.toml"
    shutil.copytree(mini.data, data)
    videos = pq.read_table(data / "videos.parquet")
    n = videos.num_rows
    columns = {
        "hd": pa.array([i % 3 == 0 for i in range(n)]),
        "regions": pa.array([("at", "de")[: 1 + i % 2] for i in range(n)]),
        "score": pa.array(np.arange(n) % 17 / 4),
        "mood": pa.array([("calm", "loud", None)[i % 3] for i in range(n)]),
        "noise": pa.array(np.arange(n) % 5 / 2),
    }
    for name, column in columns.items():
        videos = videos.append_column(name, column)
    pq.write_table(videos, data / "videos.parquet")
    config.write_text(CONFIG, encoding="utf-8")
    train(data, as_of_us=mini.as_of_us, metric="view", out=out, device="cpu", seed=1, config=config)
    printed = " ".join(capsys.readouterr().err.split())
    assert (
        "attributes read: hd (boolean), mood (category of 2 values), regions (list of 2 values), score (number"
        in printed
    )
    assert "columns not read: noise (not chosen in the settings)" in printed
    declared = load_bundle(out).manifest.schema.attributes
    assert [(a.name, a.kind) for a in declared] == [
        ("hd", "boolean"),
        ("mood", "category"),
        ("regions", "list"),
        ("score", "number"),
    ]

    video = load_dataset(data, before_us=mini.as_of_us).videos[0]
    history = History({"view": Series("events", np.array([0, 8]), np.array([3, 40]))})

    def asked(**attributes: object) -> Request:
        known = replace(video, attributes=attributes_of(attributes))
        return Request(known, history, video.published_us + 6 * HOUR_US, (HOUR_US, 24 * HOUR_US))

    values = {"hd": True, "mood": "loud", "regions": ["at"], "score": 3.5}
    requests = [asked(**values)] + [
        asked(**{**values, name: other})
        for name, other in (("hd", False), ("mood", "calm"), ("regions", ["de"]), ("score", 0.0), ("noise", 1.0))
    ]
    requests.append(asked())
    forecaster = Forecaster.load(out, device="cpu")
    try:
        together = [made.quantiles for made in forecaster.forecast(requests)]
        alone = [forecaster.forecast([request])[0].quantiles for request in requests]
    finally:
        forecaster.close()
    np.testing.assert_array_equal(np.stack(together), np.stack(alone))
    differs = [not np.array_equal(made, together[0]) for made in together]
    assert differs == [False, True, True, True, True, False, True]
