"""Reads videos.parquet."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from index_builder.datasets import parquet_columns
from index_builder.datasets.attributes.columns import attributes_of_rows, converted, readable_columns
from index_builder.datasets.dropped_rows import DroppedRows
from index_builder.datasets.file_format import NUMBER_FIELDS, TEXT_FIELDS, VIDEOS_FILE
from index_builder.datasets.parquet_files import ParquetTable
from model.engagement.video import Video


def read_videos(table: ParquetTable, before_us: int, dropped: DroppedRows) -> tuple[list[Video], NDArray[np.int64]]:
    """Read the videos published up to ``before_us``.

    Return the videos sorted by (time of publication, id), and their times of publication (V,).
    """
    kinds, _ = readable_columns(table)
    parts: dict[str, list[pa.Array]] = {name: [] for name in (*table.names, *kinds) if name != "published_at"}
    times, rows = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    for batch in table.batches(tuple(kinds)):
        ids = parquet_columns.text(batch.column("video_id"))
        published = parquet_columns.times(batch.column("published_at"))
        empty, no_time = parquet_columns.empty(ids), published.missing()
        known = no_time | (published.us <= before_us)
        dropped.add(VIDEOS_FILE, "no id", known & empty)
        dropped.add(VIDEOS_FILE, "no time of publication", published.null & ~empty)
        dropped.add(VIDEOS_FILE, f"published outside {parquet_columns.YEARS}", published.out_of_range & ~empty)
        keep = np.flatnonzero(~empty & ~no_time)
        times.append(published.us[keep])
        rows.append(dropped.start + keep)
        for name, arrays in parts.items():
            column = batch.column(name)
            cells = converted(kinds[name], column) if name in kinds else _metadata(name, column)
            arrays.append(cells.take(pa.array(keep)))
        dropped.start += len(batch)
    dropped.start = 0
    if len(times) == 1:
        return [], times[0]
    ids, published_us = pa.concat_arrays(parts["video_id"]), np.concatenate(times)
    keep = _without_duplicates(ids, published_us, before_us, np.concatenate(rows), dropped)
    by_id = np.empty(len(keep), np.int64)
    by_id[pc.sort_indices(ids.take(pa.array(keep))).to_numpy()] = np.arange(len(keep))
    keep = keep[np.lexsort((by_id, published_us[keep]))]
    chosen = pa.array(keep)
    columns = {name: pa.concat_arrays(arrays).take(chosen) for name, arrays in parts.items()}
    fields = {name: columns[name].to_pylist() for name in columns if name not in kinds}
    fields["published_us"] = published_us[keep].tolist()
    fields["attributes"] = attributes_of_rows([(name, columns[name]) for name in kinds], len(keep))
    videos = [Video(**dict(zip(fields, cells, strict=True))) for cells in zip(*fields.values(), strict=True)]
    return videos, published_us[keep]


def _without_duplicates(
    ids: pa.Array, published_us: NDArray[np.int64], before_us: int, rows: NDArray[np.int64], dropped: DroppedRows
) -> NDArray[np.int64]:
    """Return the indices of the videos published up to ``before_us``. If several videos have the same id, the first one is kept."""
    codes = ids.dictionary_encode().indices.to_numpy()
    repeated = np.ones(len(codes), np.bool_)
    repeated[np.unique(codes, return_index=True)[1]] = False
    known = published_us <= before_us
    if (repeated & known).any():
        first = int((repeated & known).argmax())
        description = f"row {rows[first]}, {ids[first].as_py()!r}"
        reason = "id is not unique, the first row is used"
        dropped.count(VIDEOS_FILE, reason, int((repeated & known).sum()), description)
    return np.flatnonzero(known & ~repeated)


def _metadata(name: str, column: pa.Array) -> pa.Array:
    """Prepare a column of videos.parquet: empty text and impossible numbers are replaced by missing values."""
    if name in NUMBER_FIELDS:
        return pa.array(parquet_columns.numbers(column).values, from_pandas=True)
    if name in TEXT_FIELDS:
        column = parquet_columns.texts(column)
        return pc.if_else(pc.equal(column, ""), None, column)
    return parquet_columns.text(column)
