"""A small data set, and the many ways in which other programs write its Parquet files."""

from __future__ import annotations

from collections.abc import Callable
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

SECOND = 1_000_000
UTC = pa.timestamp("us", tz="UTC")
START = 1_700_000_000
NOW = (START + 10**7) * SECOND


def at(*seconds: float) -> pa.Array:
    return pa.array([round((START + s) * SECOND) for s in seconds], UTC)


def plain() -> dict[str, pa.Table]:
    return {
        "videos": pa.table(
            {
                "video_id": ["b", "a", "c"],
                "published_at": at(200, 100, 100),
                "title": ["One", None, "Zwölf"],
                "tags": [["x", "y"], None, ["z"]],
                "category": ["1", "2", None],
                "duration_s": pa.array([10, None, 30], pa.int64()),
                "creator_followers": pa.array([5, 2**40, None], pa.int64()),
            }
        ),
        "events": pa.table(
            {
                "video_id": ["a", "a", "b", "c"],
                "time": at(101, 102, 300, 400),
                "type": ["view", "like", "view", "view"],
                "count": pa.array([1, 2, 3, 2**53 + 1], pa.int64()),
                "reach": pa.array([7, None, 9, None], pa.int64()),
            }
        ),
        "counters": pa.table(
            {
                "video_id": ["a", "a", "b"],
                "time": at(110, 120, 310),
                "comments": pa.array([1, 4, None], pa.int64()),
                "shares": pa.array([None, 2, 2], pa.int64()),
            }
        ),
    }


def write(folder: Path, tables: dict[str, pa.Table], **options: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        pq.write_table(table, folder / f"{name}.parquet", **options)
    return folder


def changed(file: str, column: str, change: Callable[[pa.Array], pa.Array], name: str | None = None) -> Any:
    """A writer of the plain data set with one column changed."""

    def make(folder: Path) -> None:
        tables = plain()
        table = tables[file]
        array = table.column(column).combine_chunks()
        array = array.chunk(0) if isinstance(array, pa.ChunkedArray) else array
        where = table.column_names.index(column)
        tables[file] = table.set_column(where, name or column, change(array))
        write(folder, tables)

    return make


def cast(file: str, column: str, kind: pa.DataType) -> Any:
    return changed(file, column, lambda array: array.cast(kind))


def cells(file: str, column: str, kind: pa.DataType | None, *values: Any) -> Any:
    return changed(file, column, lambda _: pa.array(values, kind))


def everywhere(kind: pa.DataType) -> Callable[[Path], None]:
    """A writer of all strings in all files as one type."""

    def make(folder: Path) -> None:
        tables = plain()
        for name, table in tables.items():
            for i, field in enumerate(table.schema):
                if pa.types.is_string(field.type):
                    tables[name] = tables[name].set_column(i, field.name, table.column(i).cast(kind))
        write(folder, tables)

    return make


def listed(item: pa.DataType, kind: Callable[[pa.DataType], pa.DataType]) -> Any:
    return cells("videos", "tags", kind(item), ["x", None, "y"], None, ["z", None])


def options(**given: Any) -> Callable[[Path], None]:
    def written(folder: Path) -> None:
        write(folder, plain(), **given)

    return written


def folders(folder: Path) -> None:
    """As Spark writes: a folder of parts, with a marker, checksums and a file of another kind."""
    for name, table in plain().items():
        place = folder / f"{name}.parquet"
        place.mkdir(parents=True)
        pq.write_table(table.slice(0, 1), place / "part-00000-abc.snappy.parquet")
        pq.write_table(table.slice(1), place / "part-00001-abc.snappy.parquet")
        pq.write_table(table.slice(0, 0), place / "part-00002-abc.snappy.parquet")
        (place / "_SUCCESS").touch()
        (place / "_metadata").write_bytes(b"PAR1")
        (place / ".part-00000-abc.snappy.parquet.crc").write_bytes(b"crc")
        (place / "notes.txt").write_text("not data")


def hive(folder: Path) -> None:
    """Partition folders: the type of an event is only in its path, and part files have no suffix."""
    tables = plain()
    events = tables.pop("events")
    write(folder, tables)
    for kind in ("view", "like"):
        place = folder / "events.parquet" / "day=2023-11-14" / f"type={kind}"
        place.mkdir(parents=True)
        rows = pa.compute.equal(events["type"], kind)
        pq.write_table(events.filter(rows).drop_columns("type"), place / "000000_0")


def parts_differ(folder: Path) -> None:
    """Parts whose types and columns differ."""
    tables = plain()
    counters = tables.pop("counters")
    write(folder, tables)
    place = folder / "counters.parquet"
    place.mkdir()
    first = counters.slice(0, 1).drop_columns("shares")
    pq.write_table(first.set_column(0, "video_id", first["video_id"].cast(pa.large_string())), place / "0.parquet")
    rest = counters.slice(1)
    pq.write_table(rest.set_column(2, "comments", rest["comments"].cast(pa.float64())), place / "1.parquet")


def shuffled(folder: Path) -> None:
    write(folder, {name: table.take(list(range(len(table)))[::-1]) for name, table in plain().items()})


def doubled(column: str, file: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        tables = plain()
        tables[file] = tables[file].append_column(column, tables[file][column])
        write(folder, tables)

    return make


def with_rows(file: str, **columns: Any) -> Callable[[Path], None]:
    """The plain data set with bad rows after the good ones."""

    def make(folder: Path) -> None:
        tables = plain()
        more = {name: columns.get(name, [None] * len(columns["video_id"])) for name in tables[file].column_names}
        kinds = {field.name: field.type for field in tables[file].schema}
        odd = pa.table({name: pa.array(cells, kinds[name]) for name, cells in more.items()})
        tables[file] = pa.concat_tables([tables[file], odd])
        write(folder, tables)

    return make


def damaged(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        write(folder, plain())
        path = folder / f"{file}.parquet"
        path.write_bytes(change(path.read_bytes()))

    return make


def encrypted(folder: Path) -> None:
    damaged("events", lambda data: data[:-4] + b"PARE")(folder)


def no_row_group(folder: Path) -> None:
    tables = plain()
    tables.pop("events")
    write(folder, tables)
    pq.ParquetWriter(folder / "events.parquet", plain()["events"].schema).close()


DICTIONARY = pa.dictionary(pa.int32(), pa.string())
FIRST_TIMES = [round(START + s) for s in (101, 102, 300, 400)]

SAME: dict[str, Callable[[Path], Any]] = {
    "plain": options(),
    "string_view": everywhere(pa.string_view()),
    "large_string": everywhere(pa.large_string()),
    "binary": everywhere(pa.binary()),
    "large_binary": everywhere(pa.large_binary()),
    "binary_view": everywhere(pa.binary_view()),
    "dictionary": everywhere(DICTIONARY),
    "dictionary of large_string": everywhere(pa.dictionary(pa.int8(), pa.large_string())),
    "fixed size ids": cast("events", "video_id", pa.binary(1)),
    "dictionary ids on one side": cast("videos", "video_id", DICTIONARY),
    "tags large_list": listed(pa.string(), pa.large_list),
    "tags of string_view": listed(pa.string_view(), pa.list_),
    "tags of binary": listed(pa.binary(), pa.list_),
    "tags of dictionary": listed(DICTIONARY, pa.list_),
    "tags list_view": listed(pa.string(), pa.list_view),
    "tags as text": cells("videos", "tags", pa.string(), "x,y", None, "z"),
    "category int": cells("videos", "category", pa.int32(), 1, 2, None),
    "decimal counts": cast("events", "count", pa.decimal128(20, 0)),
    "decimal with places": cast("events", "count", pa.decimal128(30, 2)),
    "decimal256": cast("events", "count", pa.decimal256(40, 0)),
    "decimal followers": cast("videos", "creator_followers", pa.decimal128(20, 0)),
    "uint64": cast("events", "count", pa.uint64()),
    "int8": cast("counters", "comments", pa.int8()),
    "uint16": cast("counters", "comments", pa.uint16()),
    "float64": cast("counters", "comments", pa.float64()),
    "float32": cast("counters", "shares", pa.float32()),
    "float16": cast("counters", "shares", pa.float16()),
    "nan for null": cells("counters", "comments", pa.float64(), 1.0, 4.0, float("nan")),
    "null column": lambda folder: write(
        folder, plain() | {"videos": plain()["videos"].append_column("language", pa.nulls(3))}
    ),
    "sentinel followers": cells("videos", "creator_followers", pa.int64(), 5, 2**40, 2**63 - 1),
    "sentinel -1": cells("videos", "creator_followers", pa.int64(), 5, 2**40, -1),
    "sentinel uint64": cells("videos", "creator_followers", pa.uint64(), 5, 2**40, 2**64 - 1),
    "sentinel inf": cells("videos", "duration_s", pa.float64(), 10.0, float("inf"), 30.0),
    "sentinel -inf": cells("videos", "duration_s", pa.float64(), 10.0, float("-inf"), 30.0),
    "sentinel nan": cells("videos", "duration_s", pa.float64(), 10.0, float("nan"), 30.0),
    "sentinel in reach": cells("events", "reach", pa.int64(), 7, 2**63 - 1, 9, -1),
    "sentinel in counters": cells("counters", "comments", pa.int64(), 1, 4, 2**63 - 1),
    "minus one in counters": cells("counters", "shares", pa.int64(), -1, 2, 2),
    "inf in counters": cells("counters", "shares", pa.float64(), float("inf"), 2.0, 2.0),
    "decimal sentinel": cells("counters", "shares", pa.decimal128(38, 2), Decimal(10**20), Decimal(2), Decimal(2)),
    "times s": cast("events", "time", pa.timestamp("s", tz="UTC")),
    "times ms": cast("events", "time", pa.timestamp("ms", tz="UTC")),
    "times ns": cast("events", "time", pa.timestamp("ns", tz="UTC")),
    "times of a zone": cast("events", "time", pa.timestamp("us", tz="America/New_York")),
    "times of an offset": cast("events", "time", pa.timestamp("ms", tz="+05:30")),
    "naive times": cast("events", "time", pa.timestamp("us")),
    "naive publication": cast("videos", "published_at", pa.timestamp("ns")),
    "dictionary times": lambda folder: changed("events", "time", lambda a: a.dictionary_encode())(folder),
    "int96": options(use_deprecated_int96_timestamps=True),
    "row groups": options(row_group_size=1),
    "no dictionary, v1": options(use_dictionary=False, version="1.0", data_page_version="1.0", store_schema=False),
    "v2 pages, zstd": options(data_page_version="2.0", compression="zstd"),
    "brotli": options(compression="brotli"),
    "part files": folders,
    "partition folders": hive,
    "parts that differ": parts_differ,
    "other order": shuffled,
    "column in capitals": changed("videos", "title", lambda a: a, "Title"),
    "blanks around a column": changed("events", "video_id", lambda a: a, " video_id "),
    "byte order mark": changed("videos", "video_id", lambda a: a, "\ufeffvideo_id"),
    "unknown column twice": lambda folder: write(
        folder,
        plain() | {"events": plain()["events"].append_column("x", at(1, 2, 3, 4)).append_column("x", at(1, 2, 3, 4))},
    ),
    "video twice": with_rows("videos", video_id=["a"], published_at=at(5), title=["other"]),
    "video without id": with_rows("videos", video_id=[None, ""], published_at=at(5, 6)),
    "video without time": with_rows("videos", video_id=["n"], published_at=[None]),
    "video of year 1": with_rows("videos", video_id=["y"], published_at=pa.array([-(2**62)], UTC)),
    "video of the far future": with_rows("videos", video_id=["y"], published_at=pa.array([2**63 - 1], UTC)),
    "orphans": with_rows("events", video_id=["zz"], time=at(150), type=["view"], count=[1]),
    "orphan counters": with_rows("counters", video_id=["zz", None], time=at(150, 150), comments=[1, 1]),
    "before publication": with_rows("events", video_id=["a"], time=at(50), type=["view"], count=[1]),
    "events without a time": with_rows("events", video_id=["a"], time=[None], type=["view"], count=[1]),
    "events of no time": with_rows("events", video_id=["a"], time=pa.array([2**63 - 1], UTC), type=["view"], count=[1]),
    "count of 2^63 - 1": with_rows("events", video_id=["a"], time=at(150), type=["view"], count=[2**63 - 1]),
    "count of -1": with_rows("events", video_id=["a"], time=at(150), type=["view"], count=[-1]),
    "a type with both": with_rows("events", video_id=["a"], time=at(115), type=["comment"], count=[9]),
    "id that is not UTF-8": lambda folder: _not_utf8(folder, "events", "video_id", b"\xff\xfe"),
    "title that is not UTF-8": lambda folder: _not_utf8(folder, "videos", "title", b"\xc3\x28"),
}


def _not_utf8(folder: Path, file: str, column: str, cell: bytes) -> None:
    """A further row, or the missing title, as bytes that are not text in a column of type string."""
    tables = plain()
    table = tables[file]
    if file == "events":
        table = pa.concat_tables([table, table.slice(0, 1)])
        values = [*table[column].to_pylist()[:-1], cell]
    else:
        values = [cell if value is None else value for value in table[column].to_pylist()]
    raw = pa.array([v if isinstance(v, bytes) else v.encode() for v in values], pa.binary())
    text = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    tables[file] = table.set_column(table.column_names.index(column), column, text)
    write(folder, tables)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "booleans": (
        changed("counters", "comments", lambda a: pa.array([True, False, None])),
        r"counters\.parquet: column comments: is bool; allowed: integer or floating point",
    ),
    "numbers as text": (
        changed("events", "count", lambda a: a.cast(pa.string())),
        r"events\.parquet: column count: is string; allowed: integer or floating point",
    ),
    "ids as numbers": (
        cells("events", "video_id", pa.int64(), 1, 2, 3, 4),
        "column video_id: is int64; allowed: string",
    ),
    "dates": (
        changed("videos", "published_at", lambda a: a.cast(pa.timestamp("us")).cast(pa.date32())),
        r"videos\.parquet: column published_at: is date32\[day\]; allowed: timestamp; a date has no time of day",
    ),
    "seconds since 1970": (
        cells("events", "time", pa.int64(), *FIRST_TIMES),
        r'events\.parquet: column time: is int64; allowed: timestamp; in pandas: pd\.to_datetime\(column, unit="s", utc=True\)',
    ),
    "times as text": (
        cells("events", "time", pa.string(), *["2023-11-14T00:00:00Z"] * 4),
        r"events\.parquet: column time: is string; allowed: timestamp; in pandas: pd\.to_datetime\(column, utc=True\)",
    ),
    "times of day": (
        cells("events", "time", pa.time32("s"), 1, 2, 3, 4),
        r"column time: is time32\[ms\]; allowed: timestamp",
    ),
    "durations": (cells("videos", "duration_s", pa.duration("s"), 1, 2, 3), "column duration_s: is duration"),
    "fractional categories": (cells("videos", "category", pa.float64(), 1.0, 2.0, None), "column category: is double"),
    "a struct for tags": (cells("videos", "tags", None, {"a": 1}, None, None), "column tags: is struct"),
    "column twice": (doubled("title", "videos"), r"videos\.parquet: column title: is present more than once"),
    "mistyped column": (
        changed("videos", "published_at", lambda a: a, "publish_at"),
        "column published_at: is missing; allowed: timestamp \\(is 'publish_at' meant\\? rename it\\)",
    ),
    "empty file": (damaged("events", lambda data: b""), r"events\.parquet: cannot be read as a Parquet file"),
    "truncated file": (
        damaged("events", lambda data: data[:-100]),
        r"events\.parquet: cannot be read as a Parquet file",
    ),
    "start of a file": (
        damaged("counters", lambda data: data[:60]),
        r"counters\.parquet: cannot be read as a Parquet file",
    ),
    "damaged page": (
        damaged("events", lambda data: data[:4] + b"\xff" * 60 + data[64:]),
        r"events\.parquet: cannot be read",
    ),
    "encrypted": (encrypted, r"events\.parquet: cannot be read as a Parquet file"),
    "CSV in a .parquet": (
        damaged("videos", lambda data: b"video_id,published_at\na,b\n"),
        r"videos\.parquet: cannot be read",
    ),
    "folder of nothing": (
        lambda folder: (folders(folder), [p.unlink() for p in (folder / "events.parquet").glob("part-*")]),  # type: ignore[func-returns-value]
        r"events\.parquet: the folder contains no Parquet file",
    ),
    "a bad part": (
        lambda folder: (folders(folder), (folder / "events.parquet" / "part-00003.parquet").write_bytes(b"PAR1")),  # type: ignore[func-returns-value]
        r"events\.parquet/part-00003\.parquet: cannot be read as a Parquet file",
    ),
}
