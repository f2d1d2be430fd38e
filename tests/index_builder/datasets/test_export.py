"""An exported store is a data set that gives the same forecasts as the store."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pyarrow.parquet as pq
import pytest
import redis

from index_builder.datasets.check import check_dataset
from index_builder.datasets.dataset import DataSet, Rows
from index_builder.datasets.export import Exported, export_store
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import sources
from index_builder.simulation.simulate import simulate
from model.engagement.attributes import attributes_of
from model.engagement.bins import HOUR_US
from model.engagement.cells import cells_of
from model.engagement.history import Mode
from model.engagement.rows import cells_at
from model.errors import DataError
from model.features.tokens import Tokens, tokenize
from service.settings import Settings
from service.store.functions import connect
from service.store.redis.embedded_server import EmbeddedServer
from service.store.rows.row import InputRow
from service.store.snapshot import Snapshot
from service.store.store import Registration, Store
from service.wiring import new_metrics
from tests import patience

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
TYPES = ("view", "like", "comment", "share")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(tmp_path_factory.mktemp("store"), appendfsync="everysec")
    server.start()
    yield server
    server.stop()


@pytest.fixture
def url(server: EmbeddedServer) -> str:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


def fed(url: str, data: DataSet, extra: tuple[InputRow, ...] = ()) -> dict[str, Snapshot]:
    """Register every video, send every row, and read the videos back."""

    async def body() -> dict[str, Snapshot]:
        chosen = Settings(bundle=Path("unused"))
        link = connect(url, new_metrics(chosen), deadline_s=10, connections=4)
        store = Store(link, chosen, new_metrics(chosen))
        rows: dict[str, list[InputRow]] = {video.video_id: [] for video in data.videos}
        modes: tuple[tuple[Mode, Rows | None], ...] = (("events", data.events), ("counters", data.counters))
        for mode, source in modes:
            if source is None:
                continue
            for i in range(len(source)):
                video_id = data.videos[source.video[i]].video_id
                cell = (data.types[source.type[i]], int(source.value[i]))
                rows[video_id].append(
                    InputRow(0, video_id, int(source.time_us[i]), mode, (cell,), int(source.reach[i]))
                )
        for row in extra:
            rows[row.video_id].append(row)
        try:
            for video in data.videos:
                metadata = msgspec.json.encode(video.metadata()).decode()
                await store.register(video.video_id, Registration(video.published_us, metadata))
            for video_id, of_video in rows.items():
                if of_video:
                    await store.apply({video_id: of_video})
            found = await store.read_many(dict.fromkeys(rows))
        finally:
            await link.close()
        assert None not in found.values()
        return {video_id: snapshot for video_id, snapshot in found.items() if isinstance(snapshot, Snapshot)}

    return asyncio.run(body())


def tokens_of_store(snapshots: list[Snapshot], now_us: np.ndarray) -> Tokens:
    cells = cells_of([s.history for s in snapshots], {kind: i for i, kind in enumerate(TYPES)})
    return tokenize(cells, np.array([s.video.published_us for s in snapshots]), now_us, len(TYPES))


def tokens_of_data(data: DataSet, now_us: np.ndarray) -> Tokens:
    events, counters = sources(data)
    codes = np.array([TYPES.index(kind) for kind in data.types])
    cells = cells_at(events, counters, np.arange(len(data.videos)), now_us, data.published_us, len(data.types))
    cells = type(cells)(cells.offsets, cells.bins, codes[cells.types], cells.values, cells.modes, cells.reach)
    return tokenize(cells, data.published_us, now_us, len(TYPES))


@pytest.mark.parametrize("counters", [False, True])
def test_an_exported_store_gives_the_same_tokens(counters: bool, tmp_path: Path, url: str) -> None:
    simulate(tmp_path / "data", videos=25, seed=5, days=8, counters=counters)
    data = load_dataset(tmp_path / "data")
    snapshots = fed(url, data)
    made = export_store(tmp_path / "out", redis_url=url)
    again = load_dataset(tmp_path / "out")
    assert again.videos == data.videos
    assert (again.events is None, again.counters is None) == (counters, not counters) and not again.dropped
    written = {name: pq.ParquetFile(tmp_path / "out" / name).metadata.num_rows for name in made.rows}
    assert made == Exported(written)
    assert [f for f in check_dataset(tmp_path / "out") if f.severity == "error"] == []
    now_us = np.full(len(again.videos), (data.last_us() or 0) + HOUR_US)
    stored = tokens_of_store([snapshots[video.video_id] for video in again.videos], now_us)
    exported = tokens_of_data(again, now_us)
    assert len(stored.features) > 300
    for name in Tokens.__slots__:
        np.testing.assert_array_equal(getattr(exported, name), getattr(stored, name), err_msg=name)


def test_no_exported_row_is_later_than_what_was_observed(tmp_path: Path, url: str) -> None:
    simulate(tmp_path / "data", videos=12, seed=6, days=3)
    data = load_dataset(tmp_path / "data")
    fed(url, data)
    export_store(tmp_path / "out", redis_url=url)
    again = load_dataset(tmp_path / "out")
    assert data.events is not None and again.events is not None
    for v in range(len(data.videos)):
        true = data.events.time_us[data.events.offsets[v] : data.events.offsets[v + 1]]
        times_us = again.events.time_us[again.events.offsets[v] : again.events.offsets[v + 1]]
        assert (times_us.max(initial=0), len(true) > 0) == (true.max(initial=0), len(times_us) > 0)
    # At no time does the data set have more rows than had happened.
    for at in np.quantile(data.events.time_us, [0.1, 0.5, 0.9]).astype(np.int64).tolist():
        assert (
            again.events.value[again.events.time_us <= at].sum() <= data.events.value[data.events.time_us <= at].sum()
        )


def test_unusual_ids_videos_without_rows_and_types_without_a_column_are_exported(tmp_path: Path, url: str) -> None:
    simulate(tmp_path / "data", videos=3, seed=7, days=1)
    data = load_dataset(tmp_path / "data")
    published = data.videos[0].published_us
    names = ("a{b}%7Bc", "ünïcode:7:x", "quiet")
    videos = [type(data.videos[0])(name, published, title=f"title of {name}") for name in names]
    odd = DataSet(videos, np.full(3, published), (), None, None)
    rows = (
        InputRow(0, names[0], published + 5, "counters", (("view", 7), ("save", 3))),
        InputRow(0, names[1], published + HOUR_US, "events", (("view", 2),), 11),
    )
    fed(url, odd, rows)
    made = export_store(tmp_path / "out", redis_url=url)
    assert made == Exported({"videos.parquet": 3, "events.parquet": 1, "counters.parquet": 1}, {"save": 1})
    again = load_dataset(tmp_path / "out")
    assert {video.video_id: video.title for video in again.videos} == {v.video_id: v.title for v in videos}
    assert again.events is not None and again.counters is not None
    assert (again.events.time_us.tolist(), again.events.reach.tolist()) == ([published + HOUR_US], [11])
    assert again.counters.value.tolist() == [7]


def test_attributes_are_exported_as_columns(tmp_path: Path, url: str) -> None:
    simulate(tmp_path / "data", videos=4, seed=7, days=1)
    data = load_dataset(tmp_path / "data")
    given: list[dict[str, Any]] = [
        {"hd": True, "regions": ["de", "at"], "score": 4.0},
        {"hd": False, "note": "new"},
        {},
        {"score": -1.5},
    ]
    videos = [replace(v, attributes=attributes_of(a)) for v, a in zip(data.videos, given, strict=True)]
    snapshots = fed(url, replace(data, videos=videos))
    assert [snapshots[v.video_id].video for v in videos] == videos
    assert export_store(tmp_path / "out", redis_url=url).left_out == {}
    assert load_dataset(tmp_path / "out").videos == videos
    assert pq.read_schema(tmp_path / "out" / "videos.parquet").names[-4:] == ["hd", "note", "regions", "score"]


def test_signals_are_exported_as_columns(tmp_path: Path, url: str) -> None:
    simulate(tmp_path / "data", videos=2, seed=7, days=1)
    data = load_dataset(tmp_path / "data")
    published = data.videos[0].published_us
    videos = [replace(data.videos[0], video_id=name) for name in ("counted", "events", "quiet")]
    odd = DataSet(videos, np.full(3, published), (), None, None)
    rows = (
        InputRow(0, "counted", published + 5, "counters", (("view", 7), ("~rank", 3.0))),
        InputRow(0, "counted", published + HOUR_US, "counters", (("~rank", 1.5), ("~heat", -2.0))),
        InputRow(0, "counted", published + 2 * HOUR_US, "counters", (("view", 9),)),
        InputRow(0, "events", published + HOUR_US, "events", (("view", 2),)),
        InputRow(0, "events", published + HOUR_US, "counters", (("~rank", 8.0),)),
    )
    snapshots = fed(url, odd, rows)
    export_store(tmp_path / "out", redis_url=url)
    again = load_dataset(tmp_path / "out")
    assert sorted(again.signals) == ["heat", "rank"]
    video = np.arange(3)
    exported = again.signal_cells_at(video, np.full(3, published + 9 * HOUR_US))
    for v, each in enumerate(again.videos):
        stored = snapshots[each.video_id].history.signals if each.video_id in snapshots else {}
        for name, cells in exported.items():
            found = cells.readings()[v]
            expected = stored.get(name)
            assert found.bins.tolist() == ([] if expected is None else expected.bins.tolist())
            assert found.values.tolist() == ([] if expected is None else expected.values.tolist())


def test_a_store_without_rows_is_exported_as_a_data_set(tmp_path: Path, url: str) -> None:
    simulate(tmp_path / "data", videos=3, seed=7, days=1)
    data = load_dataset(tmp_path / "data")
    fed(url, DataSet(data.videos, data.published_us, (), None, None))
    export_store(tmp_path / "out", redis_url=url)
    assert len(load_dataset(tmp_path / "out").videos) == 3


def test_a_failed_export_leaves_nothing_behind(tmp_path: Path, url: str) -> None:
    out = tmp_path / "out"
    for arguments, reason in (
        ({"redis_url": url}, "no registered video"),
        ({"redis_url": "redis://127.0.0.1:1"}, "does not answer"),
        ({"data_dir": tmp_path / "nowhere"}, "no embedded event store"),
    ):
        with pytest.raises(DataError, match=reason):
            export_store(out, **arguments)
        assert list(out.iterdir()) == []
    (out / "events.parquet").write_bytes(b"mine")
    with pytest.raises(DataError, match=r"already contains events\.parquet"):
        export_store(out, redis_url=url)
    assert (out / "events.parquet").read_bytes() == b"mine" and not (tmp_path / "nowhere").exists()


def test_the_command_reads_the_folder_of_a_stopped_service(tmp_path: Path) -> None:
    simulate(tmp_path / "data", videos=8, seed=8, days=2)
    data = load_dataset(tmp_path / "data")
    server = EmbeddedServer(tmp_path / "service", appendfsync="everysec")
    server.start()
    environment = {**os.environ, "REDIS_URL": "redis://127.0.0.1:1"}
    command = [sys.executable, "-m", "index_builder.cli", "export", "--data-dir", str(tmp_path / "service")]

    def run(out: str) -> subprocess.CompletedProcess[str]:
        code = f"from index_builder.cli import main; import sys; sys.argv[1:] = {[*command[3:], '--out', str(tmp_path / out)]}; main()"
        return patience.run(
            [sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True, seconds=60
        )

    try:
        fed(server.url, data)
        refused = run("early")
        assert refused.returncode == 2 and "another service runs" in refused.stderr
    finally:
        server.stop()
    done = run("out")
    assert done.returncode == 0, done.stderr
    assert "8 rows in videos.parquet" in done.stdout
    assert load_dataset(tmp_path / "out").videos == data.videos
