"""Writes attributes as further columns of videos.parquet, and signals as further columns of counters.parquet.

The names and kinds of all columns are known only when every row was written. So the values are first written as one
column of JSON. At the end, this column is replaced by one column for each name.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any, Final

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from index_builder.datasets.attributes.columns import WRITTEN
from model.engagement.attributes import Attributes, kind_of

ENCODED: Final = "further columns as JSON"
"""Name of the temporary column."""
_BATCH_ROWS: Final = 1 << 16


class FurtherColumns:
    """Encodes the further values of the rows of one file, and finally gives each name its own column."""

    def __init__(self) -> None:
        self._kinds: dict[str, Counter[str]] = {}

    def encode(self, values: Attributes) -> str | None:
        """Return the values of one row as JSON, or None if there are none."""
        for name, value in values:
            self._kinds.setdefault(name, Counter())[kind_of(value)] += 1
        return msgspec.json.encode(dict(values)).decode() if values else None

    def finish(self, path: Path) -> dict[str, int]:
        """Replace the temporary column of the file at ``path`` by one column for each name.

        A name with values of several kinds keeps those of its most frequent kind. Return the number of values
        that were left out, by name.
        """
        kinds = {name: counted.most_common(1)[0][0] for name, counted in sorted(self._kinds.items())}
        part = path.with_suffix(".part")
        with pq.ParquetFile(path) as file:
            kept = file.schema_arrow.remove(file.schema_arrow.get_field_index(ENCODED))
            schema = pa.schema([*kept, *(pa.field(name, WRITTEN[kind]) for name, kind in kinds.items())])
            with pq.ParquetWriter(part, schema, compression="zstd") as writer:
                for batch in file.iter_batches(_BATCH_ROWS):
                    columns = _columns(batch.column(ENCODED).to_pylist(), kinds)
                    arrays = [batch.column(name) for name in kept.names]
                    writer.write_batch(pa.RecordBatch.from_arrays(arrays + columns, schema=schema))
        part.replace(path)
        return {
            name: counted.total() - counted[kinds[name]] for name, counted in self._kinds.items() if len(counted) > 1
        }


def _columns(encoded: list[str | None], kinds: dict[str, str]) -> list[pa.Array]:
    rows: list[dict[str, Any]] = [{} if text is None else msgspec.json.decode(text) for text in encoded]
    columns = []
    for name, kind in kinds.items():
        cells = (row.get(name) for row in rows)
        fitting = [None if cell is None or kind_of(cell) != kind else cell for cell in cells]
        columns.append(pa.array(fitting, WRITTEN[kind]))
    return columns
