"""Offline forecasts for a file of queries. Each query is answered from rows up to its own ``now`` only."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.bundles.open_bundle import open_bundle, open_with_growing_bank
from index_builder.datasets import parquet_columns
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_and_report
from index_builder.datasets.observed import Observed
from index_builder.progress import progress
from index_builder.samples.text_encoding import WORTH_A_PROCESS, sentences
from model.bundle import Manifest, load_bundle
from model.engagement.bins import SECOND_US
from model.engagement.cells import EVENT_MODE, Cells
from model.engagement.history import History, Mode, Series
from model.engagement.rows import cells_at
from model.engagement.signals import SignalCells
from model.engagement.types import metric_types
from model.engagement.video import Video
from model.errors import DataError
from model.forecast import Request
from model.forecaster import Forecaster
from model.quantiles.head import QUANTILES

_BATCH = 512
_COLUMNS = ("video_id", "metric", "now", "target_time")


def histories(cells: Cells, types: tuple[str, ...], signals: Mapping[str, SignalCells] | None = None) -> list[History]:
    """Return the history of each of the S sequences in ``cells``. ``signals`` holds their readings by signal."""
    readings = {name: part.readings() for name, part in (signals or {}).items()}
    out: list[History] = []
    offsets = cells.offsets.tolist()
    for start, stop in pairwise(offsets):
        bins, kinds, values = cells.bins[start:stop], cells.types[start:stop], cells.values[start:stop]
        series = {}
        for kind in np.unique(kinds).tolist():
            mine = kinds == kind
            mode: Mode = "events" if cells.modes[start:stop][mine][0] == EVENT_MODE else "counters"
            series[types[kind]] = Series(mode, bins[mine], values[mine])
        reach = {b: r for b, r in zip(bins.tolist(), cells.reach[start:stop].tolist(), strict=True) if r}
        known = {name: of[len(out)] for name, of in readings.items() if len(of[len(out)].bins)}
        out.append(History(series, reach, known))
    return out


def forecast_at(
    forecaster: Forecaster,
    observed: Observed,
    video: NDArray[np.int64],
    now_us: NDArray[np.int64],
    horizon_us: NDArray[np.int64],
    advance: Callable[[int], None] | None = None,
    metric: NDArray[np.int64] | None = None,
) -> NDArray[np.float64]:
    """Forecast cumulative counts for Q triples of (video, now, horizon).

    Return a float64 array of shape (Q, 1 + len(QUANTILES)): the mean, then the quantiles. All horizons and metrics of
    one pair (video, now) share one hidden state and one search for neighbours. ``metric`` (Q,) holds indices of the
    bundle's metrics. Without it, the metric of ``observed`` is forecast.
    """
    names = forecaster.manifest.metrics
    if metric is None:
        metric = np.full(len(video), names.index(observed.name))
    cuts, group = np.unique(np.stack([video, now_us]), axis=1, return_inverse=True)
    order = np.argsort(group, kind="stable")
    starts = np.searchsorted(group[order], np.arange(cuts.shape[1] + 1))
    out = np.zeros((len(video), 1 + len(QUANTILES)))
    data = observed.data
    pool = forecaster.new_pool(_BATCH)
    ready = _content_ahead(forecaster, data.videos, cuts[0])
    for first, _ in zip(range(0, cuts.shape[1], _BATCH), ready, strict=False):
        v, now = cuts[:, first : first + _BATCH]
        cells = cells_at(observed.events, observed.counters, v, now, data.published_us[v], len(data.types))
        signals = data.signal_cells_at(v, now)
        members = [order[starts[g] : starts[g + 1]] for g in range(first, first + len(v))]
        requests = [
            Request(
                data.videos[v[i]],
                history,
                int(now[i]),
                tuple(horizon_us[members[i]].tolist()),
                metrics=tuple(names[m] for m in np.unique(metric[members[i]]).tolist()),
            )
            for i, history in enumerate(histories(cells, data.types, signals))
        ]
        for rows, answer in zip(members, forecaster.forecast_metrics(requests, pool=pool, explain=False), strict=True):
            for name, made in answer.items():
                mine = metric[rows] == names.index(name)
                out[rows[mine], 0], out[rows[mine], 1:] = made.mean[mine], made.quantiles[mine]
        if advance:
            advance(sum(len(m) for m in members))
    return out


def _content_ahead(forecaster: Forecaster, videos: Sequence[Video], video: NDArray[np.int64]) -> Iterator[None]:
    """Yield once per batch, after the content of the batch's videos is in the forecaster's cache.

    ``video`` must be sorted.
    """
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


def forecast(bundle: Path, data: Path, queries: Path, out: Path, *, growing_bank: bool = False) -> None:
    """Answer the queries of a Parquet file, and write the queries with their forecasts.

    A forecast is the mean and the quantiles q0.05, q0.1, q0.25, q0.5, q0.75, q0.9 and q0.95 of the cumulative count.
    ``Forecast`` says which mean. With ``growing_bank``, neighbours and
    creator features may also come from videos published after training, as in a service.

    A query gets empty columns if its video is unknown, its metric is none of the bundle's metrics, or one of its times is
    impossible. The number of these queries is printed to standard error, with the reasons.

    Raises:
        DataError: the queries cannot be read, a column is missing or of a wrong type, or no query can be answered.
    """
    try:
        table = pq.read_table(queries)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{queries}: {' '.join(str(error).split())}") from None
    if missing := [name for name in _COLUMNS if name not in table.column_names]:
        raise DataError(f"{queries.name}: no column {missing[0]!r}; needed: {', '.join(_COLUMNS)}")
    manifest = load_bundle(bundle).manifest
    dataset = load_and_report(data)
    metric_types(manifest.metric, dataset.types)
    queried = _Queries.of(queries, table, dataset, manifest)
    rows = np.flatnonzero(queried.answerable)
    video, now, target = queried.video[rows], queried.now_us[rows], queried.target_us[rows]
    observed = Observed.of(dataset, manifest.metric)
    newest_us = int(now.max()) if len(now) else 0
    answers = np.full((len(table), 1 + len(QUANTILES)), np.nan)
    with (
        open_with_growing_bank(bundle, observed, newest_us)
        if growing_bank and len(now)
        else open_bundle(bundle) as forecaster
    ):
        # The data set's objects stay in memory until the end. Freezing excludes them from garbage collection, which
        # saves time.
        gc.freeze()
        with progress("forecast", len(video)) as bar:
            answers[rows] = forecast_at(
                forecaster, observed, video, now, target - now, bar.advance, queried.metric[rows]
            )
    for i, name in enumerate(("mean", *(f"q{level}" for level in QUANTILES))):
        table = table.drop_columns([name]) if name in table.column_names else table
        table = table.append_column(name, pa.array(answers[:, i], from_pandas=True))
    pq.write_table(table, out)


@dataclass(frozen=True, slots=True)
class _Queries:
    """Q parsed queries.

    ``video`` (Q,) int64: index of the video, -1 if it is unknown.
    ``now_us`` and ``target_us`` (Q,) int64: times in microseconds since 1970 UTC.
    ``answerable`` (Q,) bool: True if the query can be answered.
    ``metric`` (Q,) int64: index of the bundle's metric, -1 if the bundle does not forecast it.
    """

    video: NDArray[np.int64]
    now_us: NDArray[np.int64]
    target_us: NDArray[np.int64]
    answerable: NDArray[np.bool_]
    metric: NDArray[np.int64]

    @staticmethod
    def of(path: Path, table: pa.Table, dataset: DataSet, manifest: Manifest) -> _Queries:
        """Parse the queries and print which queries cannot be answered."""
        ids, metrics = (
            parquet_columns.text(_column(path, table, name, parquet_columns.is_text, "string"))
            for name in ("video_id", "metric")
        )
        known = pa.array([video.video_id for video in dataset.videos], pa.large_string())
        video = parquet_columns.positions(ids, known)
        metric = parquet_columns.positions(metrics, pa.array(manifest.metrics, pa.large_string()))
        allowed = " or ".join(map(repr, manifest.metrics))
        now, target = (
            parquet_columns.times(_column(path, table, name, parquet_columns.is_time, "timestamp"))
            for name in ("now", "target_time")
        )
        horizon = target.us - now.us
        published = dataset.published_us[video] if len(dataset.videos) else np.zeros(len(video), np.int64)
        longest_us = manifest.max_horizon_us
        wrong = {
            f"metric is not {allowed}, which this bundle forecasts": (metrics, metric < 0),
            "video_id is not in the data set's videos.parquet": (ids, video < 0),
            "now is not a valid time": (None, now.missing()),
            "target_time is not a valid time": (None, target.missing()),
            "now is before the video was published": (ids, (video >= 0) & ~now.missing() & (now.us < published)),
            f"target_time is not after now by at most {longest_us // SECOND_US} s, the trained maximum": (
                ids,
                ~now.missing() & ~target.missing() & ((horizon <= 0) | (horizon > longest_us)),
            ),
        }
        answerable, problems = np.ones(len(table), np.bool_), []
        for reason, (cells, found) in wrong.items():
            flags = (
                np.asarray(found.fill_null(True) if isinstance(found, pa.Array) else found, dtype=np.bool_) & answerable
            )
            if n := int(flags.sum()):
                first = int(flags.argmax())
                shown = "" if cells is None else f": {cells[first].as_py()!r}"
                problems.append(f"{path.name}: {n:,} queries not answered: {reason}, the first in row {first}{shown}")
                answerable &= ~flags
        if problems and not answerable.any():
            raise DataError("; ".join(problems))
        for line in problems:
            print(line, file=sys.stderr)
        return _Queries(video, now.us, target.us, answerable, metric)


def _column(path: Path, table: pa.Table, name: str, fits: Callable[[pa.DataType], bool], allowed: str) -> pa.Array:
    """Return the column ``name`` of ``table`` as one array. Raise DataError if the column has a wrong type."""
    if not fits(dtype := table.schema.field(name).type):
        raise DataError(f"{path.name}: column {name}: is {dtype}; allowed: {allowed}")
    column = table[name].combine_chunks()
    return parquet_columns.plain(
        column.chunk(0) if isinstance(column, pa.ChunkedArray) and column.num_chunks else column
    )
