"""Generates a synthetic data set in the canonical format (command ``m3tr-build simulate``).

Every video, creator and engagement in the data set is invented, and the files say so.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from index_builder.datasets.file_format import COUNTERS_FILE, EVENTS_FILE, LAYOUT, VIDEOS_FILE, table_of
from index_builder.progress import progress
from index_builder.simulation.engagement import Engagement, engage
from index_builder.simulation.shapes import read_hourly
from index_builder.simulation.videos import DAY_US, LIFE_DAYS, Content, invent, timestamps
from model.engagement.bins import HOUR_US, SECOND_US
from model.engagement.types import COUNTER_COLUMNS, ENGAGEMENT_TYPES
from model.errors import DataError

Ints = NDArray[np.int64]

DEFAULT_START_US: Final = int(datetime(2025, 9, 1, tzinfo=UTC).timestamp()) * SECOND_US
_SNAPSHOTS: Final = 40


@dataclass(frozen=True, slots=True)
class Simulation:
    """Describes what was written.

    ``content``: the videos.
    ``counts`` (V,) int64: number of events per video.
    ``end_us``: end of the rows in microseconds since 1970 UTC.
    """

    content: Content
    counts: Ints
    end_us: int


def simulate(
    out: Path,
    *,
    videos: int,
    seed: int,
    days: float = 60,
    start_us: int = DEFAULT_START_US,
    counters: bool = False,
    shapes: int = 0,
    drift_us: int | None = None,
) -> Simulation:
    """Write a synthetic data set to the folder ``out``. Two calls with the same arguments write the same columns.

    Args:
        out: the folder. An existing data set is not overwritten.
        videos: number of videos, which are published over ``days`` days from ``start_us``.
        seed: seed of the random numbers.
        days: number of days over which videos are published. Rows continue for ``LIFE_DAYS[0]`` more days.
        start_us: time of the first publication in microseconds UTC.
        counters: write snapshots of cumulative counters instead of events.
        shapes: number of classes whose curves have different shapes; see ``index_builder.simulation.shapes``. With 0,
            engagement is a self-exciting process. Otherwise the data are hourly counters.
        drift_us: time of publication from which each class grows differently, in microseconds UTC. This needs
            ``shapes``.

    Raises:
        DataError: an argument is out of range, or ``out`` already contains a data set.
    """
    end_us = start_us + int((days + LIFE_DAYS[0]) * DAY_US)
    _refuse(out, videos, seed, days, end_us)
    if shapes < 0 or shapes == 1 or (drift_us is not None and not shapes):
        raise DataError(f"shapes: {shapes} is not allowed; allowed: 0, or 2 or more; a drift needs 2 or more")
    rng = np.random.default_rng(seed)
    content = invent(rng, videos, start_us, int(days * DAY_US), end_us)
    with progress("simulate", videos) as bar:
        if shapes:
            rows, counts = _shaped(rng, content, shapes, drift_us)
        else:
            events = engage(rng, content)
            counts = np.bincount(events.video, minlength=videos)
            rows = _snapshots(rng, content, events) if counters else _events(content, events)
        bar.advance(videos, note=f"{int(counts.sum()):,} engagements")
    out.mkdir(parents=True, exist_ok=True)
    metadata = {"m3tr.synthetic": "true", "m3tr.generator": "m3tr-build simulate", "m3tr.seed": str(seed)}
    _write(out / VIDEOS_FILE, content.columns, metadata)
    _write(out / (COUNTERS_FILE if counters or shapes else EVENTS_FILE), rows, metadata)
    options = f"{' --counters' if counters else ''}{f' --shapes {shapes}' if shapes else ''}"
    if drift_us is not None:
        options += f" --drift {_iso(drift_us)}"
    text = _readme(videos, seed, days, start_us, int(counts.sum()), options, _SHAPES if shapes else _PROCESS)
    (out / "README.txt").write_text(text, "utf-8")
    return Simulation(content, counts, end_us)


def _shaped(
    rng: np.random.Generator, content: Content, shapes: int, drift_us: int | None
) -> tuple[dict[str, pa.Array], Ints]:
    """Return hourly counters of videos with shapes, and the last count of each video's engagements."""
    _, video, time_us, totals = read_hourly(rng, content, shapes, drift_us)
    rows = {"video_id": content.columns["video_id"].take(pa.array(video)), "time": timestamps(time_us)}
    for column, name in enumerate(COUNTER_COLUMNS):
        rows[name] = pa.array(totals[:, column])
    counts = np.zeros(len(content.published_us), np.int64)
    np.maximum.at(counts, video, totals.sum(1))
    return rows, counts


def _events(content: Content, events: Engagement) -> dict[str, pa.Array]:
    kinds = pa.array(ENGAGEMENT_TYPES)
    return {
        "video_id": content.columns["video_id"].take(pa.array(events.video)),
        "time": timestamps(events.time_us),
        "type": kinds.take(pa.array(events.type)),
        "reach": pa.array(events.reach),
    }


def _snapshots(rng: np.random.Generator, content: Content, events: Engagement) -> dict[str, pa.Array]:
    """Return cumulative counters at irregular times: every half hour at first and about daily later."""
    n = len(content.published_us)
    gap_h = np.exp(rng.normal(0, 0.4, (n, _SNAPSHOTS))) * np.minimum(0.5 * 1.22 ** np.arange(_SNAPSHOTS), 24)
    at = content.published_us[:, None] + (np.cumsum(gap_h, axis=1) * HOUR_US).astype(np.int64)
    video, column = np.nonzero(at < content.ends_us[:, None])
    at_us = at[video, column]
    order = np.lexsort((video, at_us))
    video, at_us = video[order], at_us[order]
    rows = {"video_id": content.columns["video_id"].take(pa.array(video)), "time": timestamps(at_us)}
    for name, kind in COUNTER_COLUMNS.items():
        chosen = np.flatnonzero(events.type == ENGAGEMENT_TYPES.index(kind))
        rows[name] = pa.array(_count_until(events.video[chosen], events.time_us[chosen], video, at_us, n))
    return rows


def _count_until(video: Ints, time_us: Ints, asked: Ints, until_us: Ints, n: int) -> Ints:
    """Return the number of events (len(asked),) int64 of each ``asked`` video up to each time."""
    is_query = np.concatenate([np.zeros(len(video), np.int64), np.ones(len(asked), np.int64)])
    key = np.concatenate([video, asked])
    order = np.lexsort((is_query, np.concatenate([time_us, until_us]), key))
    running = np.cumsum(1 - is_query[order])
    before = np.concatenate([[0], np.cumsum(np.bincount(video, minlength=n))])
    result = np.empty(len(key), np.int64)
    result[order] = running - before[key[order]]
    return result[len(video) :]


def _write(path: Path, columns: dict[str, pa.Array], metadata: dict[str, str]) -> None:
    pq.write_table(table_of(path.name, columns).replace_schema_metadata(metadata), path, compression="zstd")


def _refuse(out: Path, videos: int, seed: int, days: float, end_us: int) -> None:
    if videos < 1:
        raise DataError(f"videos: {videos} is not allowed; allowed: 1 or more")
    if seed < 0:
        raise DataError(f"seed: {seed} is not allowed; allowed: 0 or more")
    if not 1 <= days <= 3650:
        raise DataError(f"days: {days:g} is not allowed; allowed: 1 to 3650")
    now = datetime.now(UTC)
    if end_us > now.timestamp() * SECOND_US:
        end = datetime.fromtimestamp(end_us / SECOND_US, UTC)
        raise DataError(
            f"start, days: the data would end at {end:%Y-%m-%d %H:%M} UTC, which is in the future; start earlier"
        )
    there = [name for name in LAYOUT if (out / name).exists()]
    if there:
        raise DataError(f"{out}: already contains {', '.join(there)}; choose another folder or remove the files")


_PROCESS: Final = """from a marked, mutually exciting (Hawkes) process with power-law
memory. Creator, topic, title words and duration influence how much engagement a video attracts.
"""
_SHAPES: Final = """read hourly. The shape of a video's first day tells how much it
grows on the next days. Its level does not. Creator, topic, title words and duration influence the level only.
"""


def _iso(time_us: int) -> str:
    return f"{datetime.fromtimestamp(time_us / SECOND_US, UTC):%Y-%m-%dT%H:%M:%S}Z"


def _readme(videos: int, seed: int, days: float, start_us: int, engagements: int, options: str, source: str) -> str:
    return (
        "SYNTHETIC DATA. A program invented every video, creator and engagement here. Nothing was observed.\n\n"
        f"m3tr-build simulate --videos {videos} --seed {seed} --days {days:g} --start {_iso(start_us)}{options}\n\n"
        f"{videos} videos with {engagements} engagements, {source}"
    )
