"""Forecasts do not depend on their batch, never fall or cross, and use nothing later than now."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from index_builder.bundles.forecast import forecast, forecast_at
from index_builder.bundles.index import index
from index_builder.bundles.open_bundle import open_bundle
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed, sources
from model.bank import EmptyBank
from model.bundle import load_bundle
from model.engagement.bins import EDGES_US, HOUR_US, bin_index
from model.engagement.history import History, Series
from model.engagement.rows import cells_at
from model.engagement.video import Video
from model.forecast import Forecast, Request
from model.forecaster import Forecaster
from model.quantiles.calibration import N_COLUMNS, N_ROWS
from model.quantiles.head import HIGH, MEDIAN, N_STEPS, QUANTILES
from tests.conftest import Mini
from tests.copies import copy_tree

pytestmark = pytest.mark.slow

DAY_US = 24 * HOUR_US


@pytest.fixture(scope="module")
def forecaster(mini_bundle: Path) -> Forecaster:
    return Forecaster.load(mini_bundle, bank=EmptyBank(), device="cpu")


def random_requests(forecaster: Forecaster, n: int, seed: int) -> list[Request]:
    """Requests with histories of every size: empty, one event, few, many, ten million in one bin, and counters."""
    rng = np.random.default_rng(seed)
    longest = forecaster.manifest.max_horizon_us
    videos = [
        Video(
            f"v{i}", 1_700_000_000_000_000 + int(rng.integers(0, 7 * DAY_US)), title=f"a title {i}" if i % 3 else None
        )
        for i in range(40)
    ]
    out = []
    for i in range(n):
        video = videos[i % len(videos)]
        age_us = int(np.exp(rng.uniform(np.log(1e6), np.log(40 * DAY_US))))
        last = int(bin_index(age_us))
        series = {}
        for kind in forecaster.manifest.types:
            size = [0, 1, 1, int(rng.integers(0, 60))][i % 4]
            bins = np.unique(rng.integers(0, last + 1, size))
            values = np.exp(rng.uniform(0, rng.uniform(0.1, 14), len(bins))).astype(np.int64)
            if i % 4 == 1:
                values[:] = 1
            elif i % 4 == 2:
                values[:] = 10_000_000
            counters = i % 8 == 7
            if len(bins):
                series[kind] = Series("counters" if counters else "events", bins, values)
        horizons = np.sort(np.exp(rng.uniform(0, np.log(longest), 12)).astype(np.int64)).clip(1, longest).tolist()
        out.append(Request(video, History(series), video.published_us + age_us, (1, *horizons, longest)))
    return out


def assert_same(a: Forecast, b: Forecast) -> None:
    np.testing.assert_array_equal(a.quantiles, b.quantiles)
    np.testing.assert_array_equal(a.mean, b.mean)
    assert (a.value_now, a.counts, a.intensity, a.cold_start, a.state_age_s) == (
        b.value_now,
        b.counts,
        b.intensity,
        b.cold_start,
        b.state_age_s,
    )


def test_forecasts_do_not_depend_on_order_or_batch(forecaster: Forecaster) -> None:
    requests = random_requests(forecaster, 300, 4)
    alone = [forecaster.forecast([request])[0] for request in requests]
    assert len({float(answer.quantiles[-1, MEDIAN]) for answer in alone}) > 200
    rng = np.random.default_rng(0)
    for size in (7, 300):
        order = rng.permutation(len(requests))
        for start in range(0, len(order), size):
            rows = order[start : start + size]
            for row, answer in zip(rows, forecaster.forecast([requests[r] for r in rows]), strict=True):
                assert_same(answer, alone[row])


def test_quantiles_never_fall_and_never_cross(forecaster: Forecaster) -> None:
    requests = random_requests(forecaster, 10_000, 5)
    answers = forecaster.forecast(requests)
    cold = 0
    for request, answer in zip(requests, answers, strict=True):
        q = answer.quantiles
        assert np.isfinite(q).all()
        assert (q >= answer.value_now).all()
        assert (np.diff(q, axis=0) >= 0).all()
        assert (np.diff(q, axis=1) >= 0).all()
        assert np.isfinite(answer.mean).all() and (answer.mean >= answer.value_now).all()
        assert (np.diff(answer.mean) >= 0).all()
        series = request.history.series.get("view")
        assert answer.value_now == (series.total() if series else 0)
        assert all(np.isfinite(rate) and rate >= 0 for rate in answer.intensity.values())
        cold += answer.cold_start
    assert 2_500 <= cold < 5_000


def write_queries(path: Path, rows: list[tuple[str, int, int]]) -> None:
    ids, now, target = zip(*rows, strict=True)
    time = pa.timestamp("us", tz="UTC")
    pq.write_table(
        pa.table(
            {
                "video_id": list(ids),
                "metric": ["view"] * len(ids),
                "now": pa.array(now, pa.int64()).cast(time),
                "target_time": pa.array(target, pa.int64()).cast(time),
            }
        ),
        path,
    )


def quantiles(bundle: Path, data: Path, queries: Path, out: Path) -> np.ndarray:
    forecast(bundle, data, queries, out)
    table = pq.read_table(out)
    return np.stack([table[f"q{level}"].to_numpy() for level in QUANTILES], axis=1)


def times_us(table: pa.Table) -> np.ndarray:
    return table["time"].combine_chunks().cast(pa.timestamp("us", tz="UTC")).cast(pa.int64()).to_numpy()


def test_offline_forecasts_do_not_look_ahead(mini: Mini, tmp_path: Path) -> None:
    now_us = mini.as_of_us
    cut = tmp_path / "cut"
    assert without_later_rows(mini.data, cut, now_us) > 100
    rows = [
        (video.video_id, now_us, now_us + horizon)
        for video in load_dataset(mini.data).videos
        if video.published_us <= now_us
        for horizon in (HOUR_US, DAY_US, 3 * DAY_US)
    ]
    rows = [row for row in rows if row[2] - now_us <= 3 * DAY_US]
    write_queries(tmp_path / "queries.parquet", rows)
    whole, cut_off = (
        quantiles(mini.bundle, data, tmp_path / "queries.parquet", tmp_path / "out.parquet")
        for data in (mini.data, cut)
    )
    assert len(whole) > 100 and (whole[:, 2] > whole[:, 0]).any()
    np.testing.assert_array_equal(whole, cut_off)


def without_later_rows(data: Path, out: Path, now_us: int) -> int:
    """Copy a data set without the rows later than now; return the number of rows left out."""
    out.mkdir()
    dropped = 0
    for file in data.glob("*.parquet"):
        table = pq.read_table(file)
        if "time" in table.column_names:
            keep = times_us(table) <= now_us
            dropped += int((~keep).sum())
            table = table.filter(pa.array(keep))
        pq.write_table(table, out / file.name)
    return dropped


def sample_of_videos(data: Path, out: Path, every: int) -> Path:
    """Copy every ``every``-th video of a data set."""
    out.mkdir()
    videos = pq.read_table(data / "videos.parquet").sort_by("published_at")
    videos = videos.take(pa.array(np.arange(0, len(videos), every)))
    pq.write_table(videos, out / "videos.parquet")
    counters = pq.read_table(data / "counters.parquet")
    chosen = pc.is_in(counters["video_id"], value_set=videos["video_id"].combine_chunks())
    pq.write_table(counters.filter(chosen), out / "counters.parquet")
    return out


@pytest.mark.parametrize("source", ["simulated events", "real counters"])
def test_neighbours_are_used_as_they_were_known_at_now(
    source: str, mini: Mini, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """A bank filled after now gives the same answers with and without the rows that neighbours had after now."""
    if source == "simulated events":
        data = mini.data
    else:
        data = sample_of_videos(request.getfixturevalue("real_data") / "youtube_trending", tmp_path / "data", 100)
    whole = load_dataset(data)
    end_us = whole.last_us()
    assert end_us is not None
    now_us = end_us - (5 if source == "simulated events" else 14) * DAY_US
    assert without_later_rows(data, tmp_path / "known", now_us) > 100
    banks = {"later": data, "cut": tmp_path / "known"}
    for name, known in banks.items():
        copy_tree(mini.bundle, tmp_path / name)
        index(tmp_path / name, known, as_of_us=end_us)
    rows = [
        (video.video_id, now_us, now_us + horizon)
        for video in whole.videos
        if now_us - 30 * DAY_US <= video.published_us <= now_us
        for horizon in (HOUR_US, DAY_US)
    ]
    write_queries(tmp_path / "queries.parquet", rows)
    answers = {
        name: quantiles(tmp_path / name, data, tmp_path / "queries.parquet", tmp_path / "out.parquet") for name in banks
    }
    np.testing.assert_array_equal(answers["later"], answers["cut"])
    assert len(rows) > 100
    with open_bundle(tmp_path / "later") as with_bank:
        members = with_bank.bank.counts()["videos"]
    assert members > 50
    alone = Forecaster(load_bundle(tmp_path / "later"), EmptyBank(), device="cpu")
    seen = Observed.of(whole, "view")
    index_of = {video.video_id: i for i, video in enumerate(whole.videos)}
    video = np.array([index_of[name] for name, _, _ in rows])
    now, target = np.array([row[1] for row in rows]), np.array([row[2] for row in rows])
    without = forecast_at(alone, seen, video, now, target - now)
    assert (without[:, 1:] != answers["later"]).any(axis=1).mean() > 0.5, (
        "the test means something only if neighbours change the forecasts"
    )


def test_forecasts_of_real_data_do_not_look_ahead(mini: Mini, real_data: Path, tmp_path: Path) -> None:
    full = real_data / "youtube_trending"
    cut = tmp_path / "cut"
    cut.mkdir()
    counters = pq.read_table(full / "counters.parquet")
    rng = np.random.default_rng(6)
    data = load_dataset(full)
    rows = data.counters
    assert rows is not None
    several = np.flatnonzero(
        [len(np.unique(rows.time_us[a:b])) > 2 for a, b in zip(rows.offsets, rows.offsets[1:], strict=False)]
    )
    video = np.sort(rng.choice(several, 200, replace=False))
    now_us = np.empty(200, np.int64)
    for i, v in enumerate(video.tolist()):
        times = np.unique(rows.time_us[rows.offsets[v] : rows.offsets[v + 1]])
        now_us[i] = times[rng.integers(0, len(times) - 1)]
    ids = [data.videos[v].video_id for v in video]
    at = pc.index_in(counters["video_id"].combine_chunks(), pa.array(ids, pa.large_string()))
    at = at.fill_null(200).to_numpy()
    keep = times_us(counters) <= np.append(now_us, np.iinfo(np.int64).max)[at]
    assert (~keep).sum() >= 200
    pq.write_table(counters.filter(pa.array(keep)), cut / "counters.parquet")
    (cut / "videos.parquet").symlink_to(full / "videos.parquet")

    reduced = load_dataset(cut)
    assert [v.video_id for v in reduced.videos] == [v.video_id for v in data.videos]
    assert reduced.types == data.types
    both = [cells_at(*sources(d), video, now_us, d.published_us[video], len(d.types)) for d in (data, reduced)]
    assert (np.diff(both[0].offsets) > 0).all() and both[0].bins.max() < len(EDGES_US)
    for name in ("offsets", "bins", "types", "values", "modes", "reach"):
        np.testing.assert_array_equal(getattr(both[0], name), getattr(both[1], name), err_msg=name)

    queries = [(name, now, now + h) for name, now in zip(ids, now_us.tolist(), strict=True) for h in (HOUR_US, DAY_US)]
    write_queries(tmp_path / "queries.parquet", queries)
    whole, cut_off = (
        quantiles(mini.bundle, folder, tmp_path / "queries.parquet", tmp_path / "out.parquet") for folder in (full, cut)
    )
    assert np.isfinite(whole).all() and len(np.unique(whole[:, MEDIAN])) > 100
    np.testing.assert_array_equal(whole, cut_off)


def test_each_client_has_its_own_stretch_in_any_batch(mini_bundle: Path) -> None:
    forecaster = Forecaster.load(mini_bundle, bank=EmptyBank(), device="cpu")
    requests = [replace(r, client=("", "a", "b")[i % 3]) for i, r in enumerate(random_requests(forecaster, 30, 9))]
    plain = forecaster.forecast(requests)
    forecaster.adapt(None, {"a": np.full((N_ROWS, N_COLUMNS, N_STEPS), 3.0)})
    stretched = forecaster.forecast(requests)
    for request, before, after in zip(requests, plain, stretched, strict=True):
        assert_same(forecaster.forecast([request])[0], after)
        if request.client != "a":
            assert_same(before, after)
    assert (
        sum(float(a.quantiles[-1, HIGH]) > float(b.quantiles[-1, HIGH]) for a, b in zip(stretched, plain, strict=True))
        >= 8
    )
    forecaster.adapt(None)
    for before, after in zip(plain, forecaster.forecast(requests), strict=True):
        assert_same(before, after)
