"""Sends the rows of a data set to a service as a live stream (command ``m3tr-build replay``).

Rows are sent in order of time. Videos are registered before their first row is sent. Every row has an id that is
computed from its content. The service recognises repeated ids, so no row is counted twice if a replay is repeated or
restarted.
"""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.dataset import DataSet, Rows
from index_builder.datasets.file_format import COLUMN_OF_TYPE
from index_builder.datasets.load import load_and_report
from index_builder.progress import Bar, progress
from index_builder.replay.client import Client, Refused
from model.engagement.video import Video

_PARALLEL_REGISTRATIONS: Final = 8
"""Maximum number of videos that are registered at the same time."""


@dataclass(slots=True)
class ReplayCounts:
    """Sums up what the service reported about the videos and rows sent to it.

    ``refused``: number of videos that the service does not accept. The rows of these videos are not sent.
    ``first_refused``: description of the first refused video.
    ``example``: description of the first rejected row.
    """

    videos: int = 0
    refused: int = 0
    sent: int = 0
    accepted: int = 0
    duplicate: int = 0
    parked: int = 0
    rejected: int = 0
    example: str = ""
    first_refused: str = ""

    def add(self, rows: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        """Add the service's summary of a batch of rows."""
        self.sent += len(rows)
        for name in ("accepted", "duplicate", "parked"):
            setattr(self, name, getattr(self, name) + summary[name])
        self.rejected += summary["rejected"]
        if summary["rejections"] and not self.example:
            refused = dict(summary["rejections"][0])
            self.example = f"{rows[refused.pop('index')]}: {refused}"

    def __str__(self) -> str:
        text = (
            f"{self.videos:,} videos; {self.sent:,} rows sent: {self.accepted:,} accepted, {self.duplicate:,} duplicate"
        )
        text += f", {self.parked:,} parked, {self.rejected:,} rejected"
        if self.refused:
            text += f"; {self.refused:,} videos refused and their rows left out, first: {self.first_refused}"
        return f"{text}; first rejected: {self.example}" if self.example else text


@dataclass(frozen=True, slots=True)
class _Queue:
    """Rows to send, in order of time.

    ``time_us``, ``video`` and ``row`` are (n,) int64, and ``is_counter`` is (n,) bool. ``row`` is the row number of an
    event, or the index of a counter observation. The readings of signals alone follow the counter observations.
    """

    time_us: NDArray[np.int64]
    video: NDArray[np.int64]
    row: NDArray[np.int64]
    is_counter: NDArray[np.bool_]


class Replay:
    """Sends a data set's rows as a stream, in one or more steps.

    Args:
        data: the data set.
        client: connection to the service.
        from_us: start time in microseconds UTC. Earlier rows are left out.
        videos: flags (V,) bool of the videos whose rows are sent. None sends the rows of all videos.
        batch_rows: maximum number of rows per request.
        rate: rows per second. None sends rows as fast as the service accepts them.
    """

    def __init__(
        self,
        data: DataSet,
        client: Client,
        *,
        from_us: int | None = None,
        videos: NDArray[np.bool_] | None = None,
        batch_rows: int = 1000,
        rate: float | None = None,
    ) -> None:
        self._data, self._client = data, client
        self._rate = rate
        self._batch = batch_rows if rate is None else max(1, min(batch_rows, int(rate / 4)))
        self._copies = _copies(data.events) if data.events is not None else np.zeros(0, np.int64)
        self._starts = _observations(data.counters) if data.counters is not None else np.zeros(1, np.int64)
        self._readings = _lone_readings(data, self._starts)
        begin = np.iinfo(np.int64).min if from_us is None else from_us
        chosen = np.ones(len(data.videos), np.bool_) if videos is None else videos
        self._queue = _queue(data, self._starts, self._readings, chosen, begin)
        self._unregistered = chosen & (data.published_us >= begin)
        self._unregistered[self._queue.video] = True
        self._next = 0

    def remaining(self, to_us: int | None = None) -> int:
        """Return the number of rows that ``play(to_us)`` would send."""
        return self._end(to_us) - self._next

    def play(self, to_us: int | None = None, *, bar: Bar | None = None) -> ReplayCounts:
        """Register the videos published up to ``to_us``, and send all unsent rows up to ``to_us``.

        Videos and rows at ``to_us`` itself are included. Return what the service reported.

        Raises:
            ServiceError: the service refused a call or stayed unavailable.
        """
        counts = ReplayCounts()
        latest = np.iinfo(np.int64).max if to_us is None else to_us
        ready = np.flatnonzero(self._unregistered & (self._data.published_us <= latest))
        self._register(ready, counts, bar)
        end, began, first = self._end(to_us), time.monotonic(), self._next
        while self._next < end:
            if self._rate is not None:
                time.sleep(max(0.0, began + (self._next - first) / self._rate - time.monotonic()))
            stop = min(self._next + self._batch, end)
            self._send(np.arange(self._next, stop), counts)
            if bar is not None:
                bar.advance(stop - self._next, note=f"{counts.duplicate:,} duplicate, {counts.rejected:,} rejected")
            self._next = stop
        return counts

    def _register(self, videos: NDArray[np.int64], counts: ReplayCounts, bar: Bar | None) -> None:
        pool, refused = ThreadPoolExecutor(_PARALLEL_REGISTRATIONS), []
        try:
            for done, trouble in enumerate(pool.map(self._registered, [self._data.videos[i] for i in videos])):
                if trouble:
                    refused.append(int(videos[done]))
                    counts.first_refused = (
                        counts.first_refused or f"{self._data.videos[refused[0]].video_id!r}: {trouble}"
                    )
                if bar is not None and done % 100 == 0:
                    bar.advance(0, note=f"registering video {done + 1:,} of {len(videos):,}")
        finally:
            pool.shutdown(cancel_futures=True)
        self._unregistered[videos] = False
        counts.videos += len(videos) - len(refused)
        counts.refused += len(refused)
        if refused:
            self._leave_out(np.array(refused))

    def _registered(self, video: Video) -> str:
        """Register a video. Return the reason if it was refused, otherwise ""."""
        try:
            self._client.register(video)
        except Refused as error:
            return str(error)
        return ""

    def _leave_out(self, videos: NDArray[np.int64]) -> None:
        """Remove the rows of these videos that have not been sent yet."""
        queue, keep = self._queue, ~np.isin(self._queue.video, videos)
        keep[: self._next] = True
        self._queue = _Queue(queue.time_us[keep], queue.video[keep], queue.row[keep], queue.is_counter[keep])

    def _end(self, to_us: int | None) -> int:
        if to_us is None:
            return len(self._queue.time_us)
        return max(self._next, int(np.searchsorted(self._queue.time_us, to_us, side="right")))

    def _send(self, positions: NDArray[np.int64], counts: ReplayCounts) -> None:
        counters = self._queue.is_counter[positions]
        for path, chosen, encode in (("/events", ~counters, self._event), ("/counters", counters, self._snapshot)):
            if chosen.any():
                texts = np.datetime_as_string(
                    self._queue.time_us[positions[chosen]].view("datetime64[us]"), timezone="UTC"
                )
                rows = [
                    encode(int(self._queue.row[p]), str(text)) for p, text in zip(positions[chosen], texts, strict=True)
                ]
                counts.add(rows, self._client.post_rows(path, rows))

    def _event(self, row: int, text: str) -> dict[str, Any]:
        events = self._data.events
        assert events is not None
        video_id = self._data.videos[events.video[row]].video_id
        kind, count, reach = self._data.types[events.type[row]], int(events.value[row]), int(events.reach[row])
        cells: dict[str, Any] = {"video_id": video_id, "time": text, "type": kind, "count": count}
        if reach:
            cells["reach"] = reach
        cells["id"] = _identity("event", video_id, text, kind, count, reach, int(self._copies[row]))
        return cells

    def _snapshot(self, observation: int, text: str) -> dict[str, Any]:
        counters, lone = self._data.counters, observation - (len(self._starts) - 1)
        rows = range(0)
        if lone >= 0 or counters is None:
            video, time_us = map(int, self._readings[lone])
        else:
            rows = range(int(self._starts[observation]), int(self._starts[observation + 1]))
            video, time_us = int(counters.video[rows[0]]), int(counters.time_us[rows[0]])
        cells: dict[str, Any] = {"video_id": self._data.videos[video].video_id, "time": text}
        for row in rows:
            assert counters is not None
            column = COLUMN_OF_TYPE[self._data.types[counters.type[row]]]
            cells[column] = max(cells.get(column, 0), int(counters.value[row]))
        if signals := self._signals(video, time_us):
            cells["signals"] = signals
        cells["id"] = _identity("counters", *cells.items())
        return cells

    def _signals(self, video: int, time_us: int) -> dict[str, float]:
        """Return the readings of a video's signals at exactly this time."""
        found = {}
        for name, rows in self._data.signals.items():
            first, last = rows.offsets[video], rows.offsets[video + 1]
            at = first + int(np.searchsorted(rows.time_us[first:last], time_us, side="right")) - 1
            if at >= first and rows.time_us[at] == time_us:
                found[name] = float(rows.value[at])
        return found


def _identity(*parts: object) -> str:
    """Return an id of 20 hexadecimal digits that is computed from ``parts``."""
    return blake2b(repr(parts).encode(), digest_size=10).hexdigest()


def _lone_readings(data: DataSet, starts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the (video, time) pairs (n, 2) int64 at which signals were read but no counter was."""
    parts = [np.zeros((0, 2), np.int64)]
    for rows in data.signals.values():
        video = np.repeat(np.arange(len(rows.offsets) - 1), np.diff(rows.offsets))
        parts.append(np.stack([video, rows.time_us], axis=1))
    read = np.unique(np.concatenate(parts), axis=0)
    if data.counters is None or not len(read):
        return read
    first = starts[:-1]
    counted = np.stack([data.counters.video[first].astype(np.int64), data.counters.time_us[first]], axis=1)
    return read[~_rows_in(read, counted)]


def _rows_in(rows: NDArray[np.int64], others: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return flags (n,) bool of the pairs ``rows`` (n, 2) that are among ``others`` (m, 2)."""
    _, codes = np.unique(np.concatenate([rows, others]), axis=0, return_inverse=True)
    return np.isin(codes[: len(rows)], codes[len(rows) :])


def _queue(
    data: DataSet,
    starts: NDArray[np.int64],
    readings: NDArray[np.int64],
    chosen: NDArray[np.bool_],
    from_us: int,
) -> _Queue:
    n_observations = len(starts) - 1
    lone = n_observations + np.arange(len(readings))
    parts: list[tuple[NDArray[Any], ...]] = [(readings[:, 1], readings[:, 0], lone, np.ones(len(readings), np.bool_))]
    if (events := data.events) is not None:
        parts.append((events.time_us, events.video, np.arange(len(events)), np.zeros(len(events), np.bool_)))
    if (counters := data.counters) is not None:
        first, n = starts[:-1], len(starts) - 1
        parts.append((counters.time_us[first], counters.video[first], np.arange(n), np.ones(n, np.bool_)))
    time_us, video, row, is_counter = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order = np.flatnonzero(chosen[video] & (time_us >= from_us))
    order = order[np.argsort(time_us[order], kind="stable")]
    return _Queue(time_us[order], video[order].astype(np.int64), row[order], is_counter[order])


def _observations(rows: Rows) -> NDArray[np.int64]:
    """Return the start of each observation (video, time) in the counter rows, followed by the number of rows.

    The result has shape (observations + 1,) and dtype int64.
    """
    if not len(rows):
        return np.zeros(1, np.int64)
    new = (np.diff(rows.video) != 0) | (np.diff(rows.time_us) != 0)
    return np.concatenate([[0], np.flatnonzero(new) + 1, [len(rows)]]).astype(np.int64)


def _copies(rows: Rows) -> NDArray[np.int64]:
    """Return, for each of n rows, the number (n,) int64 of earlier rows with equal columns.

    With this number, separate events whose columns are equal get different ids.
    """
    columns = (rows.reach, rows.value, rows.type, rows.time_us, rows.video)
    order = np.lexsort(columns)
    new = np.ones(len(rows), np.bool_)
    new[1:] = np.any([np.diff(column[order]) != 0 for column in columns], axis=0)
    rank = np.arange(len(rows))
    copies = np.empty(len(rows), np.int64)
    copies[order] = rank - np.maximum.accumulate(np.where(new, rank, 0))
    return copies


def replay(
    data: Path,
    url: str,
    *,
    from_us: int | None = None,
    to_us: int | None = None,
    rate: float | None = None,
    batch_rows: int = 1000,
    api_key: str | None = None,
) -> ReplayCounts:
    """Replay a data set to a service and show progress. The times are in microseconds UTC, and both are inclusive."""
    loaded = load_and_report(data)
    with Client(url, api_key=api_key) as client:
        stream = Replay(loaded, client, from_us=from_us, batch_rows=batch_rows, rate=rate)
        with progress("replay", stream.remaining(to_us)) as bar:
            return stream.play(to_us, bar=bar)
