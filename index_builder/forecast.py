"""Offline forecasts for a file of queries, each from rows up to its own ``now`` only."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder import columns
from index_builder.dataset import DataSet, load_dataset
from index_builder.opening import grown, opened
from index_builder.progress import progress
from index_builder.samples import Observed
from index_builder.text import WORTH_A_PROCESS, sentences
from model.bins import SECOND_US
from model.bundle import load_bundle
from model.errors import DataError
from model.forecaster import Forecaster, Request
from model.head import QUANTILES
from model.history import History, Mode, Series
from model.rows import cells_at
from model.tokens import EVENTS, Cells
from model.types import metric_types
from model.video import Video

_BATCH = 512
_COLUMNS = ("video_id", "metric", "now", "target_time")


def histories(cells: Cells, types: tuple[str, ...]) -> list[History]:
    """The history of each of S sequences."""
    out = []
    offsets = cells.offsets.tolist()
    for start, stop in pairwise(offsets):
        bins, kinds, values = cells.bins[start:stop], cells.types[start:stop], cells.values[start:stop]
        series = {}
        for kind in np.unique(kinds).tolist():
            mine = kinds == kind
            mode: Mode = "events" if cells.modes[start:stop][mine][0] == EVENTS else "counters"
            series[types[kind]] = Series(mode, bins[mine], values[mine])
        reach = {b: r for b, r in zip(bins.tolist(), cells.reach[start:stop].tolist(), strict=True) if r}
        out.append(History(series, reach))
    return out


def forecast_at(
    forecaster: Forecaster, seen: Observed, video: NDArray[np.int64], now_us: NDArray[np.int64],
    horizon_us: NDArray[np.int64], advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:  # fmt: skip
    """Quantiles (Q, 3) of cumulative counts for Q (video, now, horizon); one state and one search serve all horizons of a now."""
    moments, group = np.unique(np.stack([video, now_us]), axis=1, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(moments.shape[1] + 1))
    out = np.zeros((len(video), 3))
    data = seen.data
    pool = forecaster.new_pool(_BATCH)
    ready = _content_ahead(forecaster, data.videos, moments[0])
    for first, _ in zip(range(0, moments.shape[1], _BATCH), ready, strict=False):
        v, now = moments[:, first : first + _BATCH]
        cells = cells_at(seen.events, seen.counters, v, now, data.published_us[v], len(data.types))
        members = [order[starts[g] : starts[g + 1]] for g in range(first, first + len(v))]
        requests = [
            Request(data.videos[v[i]], history, int(now[i]), tuple(horizon_us[members[i]].tolist()))
            for i, history in enumerate(histories(cells, data.types))
        ]
        for rows, answer in zip(members, forecaster.forecast(requests, pool=pool, explain=False), strict=True):
            out[rows] = answer.quantiles
        if advance:
            advance(sum(len(m) for m in members))
    return out


def _content_ahead(forecaster: Forecaster, videos: Sequence[Video], video: NDArray[np.int64]) -> Iterator[None]:
    """Has the content of each batch's videos in the forecaster's cache when it yields; ``video`` is sorted."""
    batches = [np.unique(video[first : first + _BATCH]) for first in range(0, len(video), _BATCH)]
    new = [batch if not i else batch[batch > batches[i - 1][-1]] for i, batch in enumerate(batches)]
    if sum(map(len, new)) < WORTH_A_PROCESS:
        yield from (None for _ in new)
        return
    chunks = [[videos[v] for v in batch] for batch in new]
    with closing(sentences(chunks)) as encoded:
        for chunk, vectors in zip(chunks, encoded, strict=True):
            if chunk:
                forecaster.content(chunk, vectors)
            yield


def _times(path: Path, table: pa.Table, name: str) -> NDArray[np.int64]:
    times = columns.times(table[name].combine_chunks())
    if (missing := np.flatnonzero(times.null)).size:
        raise DataError(f"{path.name}, column {name}, row {missing[0]}: no time; allowed: a UTC timestamp")
    return times.us


def forecast(bundle: Path, data: Path, queries: Path, out: Path, *, growing_bank: bool = False) -> None:
    """Answer the queries of a Parquet file and write them with q0.1, q0.5 and q0.9, cumulative counts.

    ``growing_bank``: neighbours and creators also from videos published after the bundle was trained, as in a service.

    Raises:
        DataError: a column is missing, or a query names an unknown video, another metric, or a time that cannot be asked.
    """
    try:
        table = pq.read_table(queries)
    except (OSError, pa.ArrowInvalid) as error:
        raise DataError(f"{queries}: {error}") from None
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise DataError(f"{queries.name}: no column {missing[0]!r}; needed: {', '.join(_COLUMNS)}")
    manifest = load_bundle(bundle).manifest
    dataset = load_dataset(data)
    metric_types(manifest.metric, dataset.types)
    video, now, target = _resolve(queries, table, dataset, manifest.metric)
    _check_times(queries, dataset, video, now, target, manifest.max_horizon_us)
    seen = Observed.of(dataset, manifest.metric)
    newest_us = int(now.max()) if len(now) else 0
    with grown(bundle, seen, newest_us) if growing_bank and len(now) else opened(bundle) as forecaster:
        # The data set's objects stay to the end: without them a collection takes no time.
        gc.freeze()
        with progress("forecast", len(video)) as bar:
            quantiles = forecast_at(forecaster, seen, video, now, target - now, bar.advance)
    for i, level in enumerate(QUANTILES):
        name = f"q{level}"
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, pa.array(quantiles[:, i]))
    pq.write_table(table, out)


def _resolve(
    path: Path, table: pa.Table, dataset: DataSet, metric: str
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    metrics = table["metric"].to_pylist()
    if other := [(i, m) for i, m in enumerate(metrics) if m != metric]:
        raise DataError(
            f"{path.name}, column metric, row {other[0][0]}: {other[0][1]!r}; this bundle forecasts {metric!r}"
        )
    index = {video.video_id: i for i, video in enumerate(dataset.videos)}
    ids = table["video_id"].to_pylist()
    video = np.array([index.get(v, -1) for v in ids], dtype=np.int64)
    if (unknown := np.flatnonzero(video < 0)).size:
        row = int(unknown[0])
        raise DataError(
            f"{path.name}, column video_id, row {row}: {ids[row]!r} is not in the data set's videos.parquet"
        )
    return video, _times(path, table, "now"), _times(path, table, "target_time")


def _check_times(
    path: Path,
    dataset: DataSet,
    video: NDArray[np.int64],
    now: NDArray[np.int64],
    target: NDArray[np.int64],
    longest_us: int,
) -> None:
    if (early := np.flatnonzero(now < dataset.published_us[video])).size:
        row = int(early[0])
        raise DataError(f"{path.name}, column now, row {row}: before the video was published; allowed: later times")
    horizon = target - now
    if (bad := np.flatnonzero((horizon <= 0) | (horizon > longest_us))).size:
        row = int(bad[0])
        raise DataError(
            f"{path.name}, column target_time, row {row}: {horizon[row] / SECOND_US:g} s after now; "
            f"allowed: above 0 and at most {longest_us // SECOND_US} s, the trained maximum"
        )
