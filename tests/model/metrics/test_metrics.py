"""One bundle forecasts several metrics from one state. Each forecast is that of its metric alone, to the bit."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index_builder.bundles.forecast import histories
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from model.bundle import Manifest, load_bundle, metric_folder
from model.engagement.bins import HOUR_US
from model.engagement.rows import cells_at
from model.errors import BundleError, DataError
from model.forecast import Forecast, Request
from model.forecaster import Forecaster
from model.growth.curve_kernels import N_GROWTH, curve_growth, growth_horizons_us
from model.growth.curves import curves
from model.quantiles.calibration import N_COLUMNS, N_ROWS
from model.quantiles.head import MEDIAN, N_STEPS
from tests.conftest import Mini

pytestmark = pytest.mark.slow

BOTH = ("views", "likes")


@pytest.fixture(scope="module")
def forecaster(mini_metrics: Mini) -> Iterator[Forecaster]:
    made = Forecaster.load(mini_metrics.bundle, device="cpu")
    yield made
    made.close()


@pytest.fixture(scope="module")
def asked(mini_metrics: Mini) -> list[Request]:
    """Requests at many ages, with and without history, that name the metrics in several ways."""
    data = load_dataset(mini_metrics.data)
    video = np.repeat(np.arange(len(data.videos) - 60, len(data.videos)), 3)
    now = data.published_us[video] + np.tile([0, 9, 50], 60) * HOUR_US
    observed = Observed.of(data, "views")
    cells = cells_at(observed.events, observed.counters, video, now, data.published_us[video], len(data.types))
    named: tuple[tuple[str, ...], ...] = ((), BOTH, ("likes",), ("likes", "views"))
    return [
        Request(data.videos[v], history, int(at), (HOUR_US, 24 * HOUR_US), metrics=named[i % len(named)])
        for i, (v, at, history) in enumerate(zip(video, now, histories(cells, data.types), strict=True))
    ]


def bits(forecast: Forecast) -> tuple[Any, ...]:
    return (
        forecast.metric,
        forecast.value_now,
        forecast.quantiles.tobytes(),
        forecast.mean.tobytes(),
        sorted(forecast.intensity.items()),
        repr(forecast.neighbours),
        forecast.extrapolated,
    )


def test_a_forecast_depends_neither_on_its_batch_nor_on_the_other_metrics(
    forecaster: Forecaster, asked: list[Request]
) -> None:
    together = forecaster.forecast_metrics(asked)
    for request, answer in zip(asked, together, strict=True):
        assert tuple(answer) == (request.metrics or ("views",))
        for metric, made in answer.items():
            assert made.metric == metric
            (alone,) = forecaster.forecast([replace(request, metrics=(metric,))])
            assert bits(alone) == bits(made)
    assert [bits(made) for made in forecaster.forecast(asked)] == [
        bits(next(iter(answer.values()))) for answer in together
    ]


def test_each_metric_has_its_own_counts_and_growth(forecaster: Forecaster, asked: list[Request]) -> None:
    requests = [replace(request, metrics=BOTH) for request in asked]
    differs = []
    for request, answer in zip(requests, forecaster.forecast_metrics(requests), strict=True):
        totals = request.history.totals()
        for metric, kind in zip(BOTH, ("view", "like"), strict=True):
            made = answer[metric]
            assert made.value_now == totals.get(kind, 0)
            assert (made.quantiles >= made.value_now).all()
            assert (np.diff(made.quantiles, axis=1) >= 0).all()
        views, likes = answer["views"], answer["likes"]
        assert set(likes.intensity) == {"like"} and set(views.intensity) >= {"view", "like"}
        growth = [np.log2((1 + a.quantiles[-1, MEDIAN]) / (1 + a.value_now)) for a in (views, likes)]
        differs.append(growth[0] != growth[1])
        assert [n.video_id for n in views.neighbours] == [n.video_id for n in likes.neighbours]
    assert np.mean(differs) > 0.9


def test_the_head_of_a_metric_reads_the_neighbours_growth_of_this_metric(
    mini_metrics: Mini, forecaster: Forecaster, asked: list[Request], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = load_dataset(mini_metrics.data, before_us=mini_metrics.as_of_us)
    horizons_us = growth_horizons_us(forecaster.manifest.max_horizon_us)
    number = {video.video_id: v for v, video in enumerate(data.videos)}
    until_us = data.watched_until_us(mini_metrics.as_of_us)
    checked = 0
    for metric in BOTH:
        observed, model = Observed.of(data, metric), forecaster.metrics[metric]
        known = curves(observed.metric, observed.totals, data.published_us, until_us, continuous=observed.continuous)
        head = model.head
        seen: list[Any] = []

        def recorded(inputs: dict[str, Any], head: Any = head, seen: list[Any] = seen) -> NDArray[np.float32]:
            seen.append(inputs["neighbours"])
            made: NDArray[np.float32] = head(inputs)
            return made

        monkeypatch.setattr(model, "head", recorded)
        for request in asked[1::3]:
            seen.clear()
            (made,) = forecaster.forecast([replace(request, metrics=(metric,))])
            for row, neighbour in zip(seen[0][0], made.neighbours, strict=False):
                v = number[neighbour.video_id]
                n = int((known.ages_us[v, : known.lengths[v]] + data.published_us[v] <= request.now_us).sum())
                growth = np.empty(N_GROWTH + 1)
                age_us = request.now_us - request.video.published_us
                curve_growth(known.ages_us[v], known.values[v], n, age_us, horizons_us, growth)
                want = np.nan_to_num(growth[:N_GROWTH] / 2)
                np.testing.assert_allclose(row[:N_GROWTH], want, atol=1e-5)
                checked += bool(want.any())
    assert checked > 100


def test_intervals_adapt_by_metric(forecaster: Forecaster, asked: list[Request]) -> None:
    requests = [replace(request, metrics=BOTH) for request in asked[1::3]]
    plain = forecaster.forecast_metrics(requests)
    forecaster.adapt(np.full((N_ROWS, N_COLUMNS, N_STEPS), 3.0), metric="likes")
    try:
        stretched = forecaster.forecast_metrics(requests)
    finally:
        forecaster.adapt(None, metric="likes")
    assert [bits(a["views"]) for a in stretched] == [bits(a["views"]) for a in plain]
    wider = [
        (a["likes"].quantiles[-1, -1] > b["likes"].quantiles[-1, -1]) for a, b in zip(stretched, plain, strict=True)
    ]
    assert np.mean(wider) > 0.5


def test_an_unknown_metric_is_refused(forecaster: Forecaster, asked: list[Request]) -> None:
    with pytest.raises(DataError, match="metrics: 'shares'; allowed: views, likes"):
        forecaster.forecast([replace(asked[0], metrics=("views", "shares"))])


def test_a_bundle_holds_what_metrics_share_once(mini_metrics: Mini) -> None:
    bundle = load_bundle(mini_metrics.bundle)
    assert bundle.manifest.metrics == BOTH
    own = bundle.of("likes").weights
    assert not any(name.startswith(("mhp.", "ngrams.")) for name in own)
    assert set(own) <= set(bundle.weights)
    assert not np.array_equal(own["pace"], bundle.weights["pace"])
    likes: Manifest = bundle.manifest.of("likes")
    assert (likes.metric, likes.metrics) == ("likes", ("likes",))
    assert "pooled" in likes.evaluation["cells"] and "fusion" in likes.training["passes"]
    assert bundle.manifest.of("views") is bundle.manifest
    page = (mini_metrics.bundle / "report.html").read_text("utf-8")
    assert "likes (metrics/likes/report.html)" in page
    assert "forecasts of likes" in (mini_metrics.bundle / "metrics/likes/report.html").read_text("utf-8")


def test_an_altered_file_of_a_metric_is_refused(mini_metrics: Mini, tmp_path: Path) -> None:
    copy = shutil.copytree(mini_metrics.bundle, tmp_path / "bundle", ignore=shutil.ignore_patterns("bank"))
    with (copy / "metrics/likes/head.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(BundleError, match=r"likes/head\.onnx: SHA-256"):
        load_bundle(copy)
    (copy / "metrics/likes/calibration.json").unlink()
    shutil.copy(mini_metrics.bundle / "metrics/likes/head.onnx", copy / "metrics/likes/head.onnx")
    with pytest.raises(BundleError, match=r"calibration\.json: No such file"):
        load_bundle(copy)


def test_the_manifest_must_declare_its_metrics_well(mini_metrics: Mini, tmp_path: Path) -> None:
    from model.bundle import _version

    for metrics, said in (
        (["likes", "views"], "must begin with 'views'"),
        (["views", "likes", "likes"], "name each metric once"),
        (["views", "laughs"], "'laughs' is not observed here"),
        (["views", 3], "schema.metrics"),
    ):
        body = json.loads((mini_metrics.bundle / "manifest.json").read_text("utf-8"))
        body["schema"]["metrics"] = metrics
        body["version"] = _version(body)
        (tmp_path / "manifest.json").write_text(json.dumps(body), encoding="utf-8")
        with pytest.raises(BundleError, match=said):
            load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["..", ".", "a/b", "C:\\x", "лайк"])
def test_the_folder_of_any_metric_is_inside_the_bundle(name: str) -> None:
    folder = Path("bundle") / metric_folder(name)
    assert folder.parent == Path("bundle/metrics") and folder.name not in (".", "..")
    assert folder.name.isascii()
