"""Reports what is wrong with videos.parquet."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from index_builder.datasets import parquet_columns
from index_builder.datasets.attributes.choice import choose_attributes
from index_builder.datasets.attributes.columns import attributes_of_rows, converted, readable_columns
from index_builder.datasets.file_format import NUMBER_FIELDS, TEXT_FIELDS, VIDEOS_FILE
from index_builder.datasets.findings import Findings
from index_builder.datasets.parquet_files import ParquetTable
from model.engagement.attributes import Attributes

_UNKNOWN_US: Final = np.iinfo(np.int64).min
"""Marks an unusable time of publication."""


@dataclass(frozen=True, slots=True)
class CheckedVideos:
    """The usable videos.

    ``ids`` (V,): ids without duplicates.
    ``published_us`` (V,) int64: times of publication in microseconds since 1970 UTC.
    """

    ids: pa.Array
    published_us: NDArray[np.int64]


def check_videos(table: ParquetTable, log: Findings) -> CheckedVideos:
    """Add findings about the videos, and about the columns that a model reads. Return the usable videos."""
    kinds, unread = readable_columns(table)
    attributes: list[Attributes] = []
    ids: list[pa.Array] = []
    published: list[NDArray[np.int64]] = []
    start = 0
    for batch in table.batches(tuple(kinds)):
        names = log.text("error", VIDEOS_FILE, "video_id", batch.column("video_id"), start)
        empty = parquet_columns.empty(names)
        log.rows("error", VIDEOS_FILE, "video_id", "empty; left out", empty, start, [""] * len(names))
        times = log.times(VIDEOS_FILE, "published_at", batch.column("published_at"), start)
        for name in TEXT_FIELDS:
            if name in batch.schema.names and parquet_columns.is_text(batch.schema.field(name).type):
                log.text("warning", VIDEOS_FILE, name, batch.column(name), start)
        for name in NUMBER_FIELDS:
            if name in batch.schema.names:
                cells = batch.column(name)
                numbers = parquet_columns.numbers(cells)
                log.rows("warning", VIDEOS_FILE, name, "negative; read as missing", numbers.negative, start, cells)
                log.rows("warning", VIDEOS_FILE, name, "too large; read as missing", numbers.too_large, start, cells)
        columns = [(name, converted(kind, batch.column(name))) for name, kind in kinds.items()]
        attributes += attributes_of_rows(columns, len(batch))
        ids.append(names)
        published.append(np.where(times.missing(), _UNKNOWN_US, times.us))
        start += len(batch)
    for choice in choose_attributes(attributes):
        verb = "is not read" if choice.attribute is None else "is read"
        log.note("info", VIDEOS_FILE, choice.name, f"this column {verb}: {choice.reason}")
    for name, reason in unread.items():
        log.note("info", VIDEOS_FILE, name, f"this column is not read: {reason}")
    if not ids:
        return CheckedVideos(pa.array([], pa.large_string()), np.zeros(0, np.int64))
    all_ids, published_us = pa.concat_arrays(ids), np.concatenate(published)
    usable = ~parquet_columns.empty(all_ids) & (published_us != _UNKNOWN_US)
    codes = all_ids.dictionary_encode().indices.fill_null(-1).to_numpy(zero_copy_only=False).astype(np.int64)
    codes[~usable] = -1
    first = np.unique(codes, return_index=True)[1]
    repeated = usable.copy()
    repeated[first] = False
    log.rows("error", VIDEOS_FILE, "video_id", "not unique; the first row is used", repeated, 0, all_ids)
    known = np.sort(first[codes[first] >= 0])
    return CheckedVideos(all_ids.take(pa.array(known)), published_us[known])
