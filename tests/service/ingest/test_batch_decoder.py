"""The batch decoder accepts only rows that the row parser accepts, reads them the same, and declines all others."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model.engagement.history import Mode
from service.ingest.accepted_types import AcceptedTypes
from service.ingest.batch_decoder import BatchDecoder
from service.ingest.row_parser import RowParser
from service.problems import Malformed
from service.settings import Settings
from service.store.rows.event_ids import MAX_PLAIN, packed_ids
from service.store.rows.row_batch import RowBatch
from service.store.rows.row_fields import MAX_COUNT
from service.strict_json import parse_line, parse_rows

NOW_US = 1_760_000_000_000_000
SETTINGS = Settings(bundle=Path("unused"), max_id_length=24)
CATALOG = AcceptedTypes(("view", "like", "comment", "share"))
FAST = BatchDecoder(CATALOG, SETTINGS, lambda: NOW_US)
CAREFUL = RowParser(CATALOG, SETTINGS, lambda: NOW_US)
GOOD = {"video_id": "v", "time": 1_759_000_000, "type": "view"}
COUNTERS = {"video_id": "v", "time": 1_759_000_000, "views": 3}


def careful(mode: Mode, items: list[Any]) -> RowBatch | None:
    """The row parser's result for a batch; None where it refuses a row."""
    parsed = CAREFUL.parse(mode, items)
    return None if parsed.refused else RowBatch.of(parsed.rows)


def contents(columns: RowBatch) -> list[Any]:
    n = len(columns)
    return [(columns.row(i), columns.ids[i] if columns.ids else b"\0") for i in range(n)]


def plain(columns: RowBatch) -> list[Any]:
    """Rows as values; decoded rows have only the packed form of the id."""
    return [
        (row.index, row.video_id, row.time_us, row.mode, row.cells, row.reach, packed)
        for row, packed in contents(columns)
    ]


def same(fast: RowBatch | None, expected: RowBatch | None) -> bool:
    """Check that the decoder declined the batch, or agrees with the parser."""
    return fast is None or (expected is not None and plain(fast) == plain(expected))


def test_valid_batches_are_decoded() -> None:
    times: list[Any] = [0, 1.5, 1_759_000_000.123456, NOW_US // 10**6, (NOW_US + 60_000_000) / 1e6]
    texts = [
        "2025-09-28T01:02:03Z",
        "2025-09-28T01:02:03.000001+02:00",
        "2025-09-28 01:02:03.999999999-11:30",
        "20250928T010203Z",
    ]
    for given_times in (times, texts):
        rows = [
            {**GOOD, "time": time, "id": "x" * (10 + i), "count": 1 + 10**i, "reach": i}
            for i, time in enumerate(given_times)
        ]
        text = json.dumps(rows).encode()
        for fast in (
            FAST.json("events", text),
            FAST.json("events", b' \n{"rows": ' + text + b"}"),
            FAST.lines("events", [json.dumps(row).encode() for row in rows]),
            FAST.items("events", rows),
        ):
            assert fast is not None and same(fast, careful("events", rows))
    rows = [
        COUNTERS,
        {**COUNTERS, "likes": 0, "id": "é" * 20},
        {"video_id": "ü", "time": 5.25, "shares": MAX_COUNT, "views": None},
    ]
    fast = FAST.json("counters", json.dumps(rows).encode())
    assert fast is not None and same(fast, careful("counters", rows))
    for empty in (b"[]", b'{"rows":[]}'):
        none = FAST.json("events", empty)
        assert none is not None and len(none) == 0


def test_types_may_have_any_name() -> None:
    catalog = AcceptedTypes(("super-like", "class", "view"))
    fast, looked = BatchDecoder(catalog, SETTINGS, lambda: NOW_US), RowParser(catalog, SETTINGS, lambda: NOW_US)
    counters = [{"video_id": "v", "time": 5, "super-likes": 3, "classs": 1}, {"video_id": "w", "time": 5, "views": 0}]
    events = [{**GOOD, "type": "super-like"}, {**GOOD, "type": "class"}]
    modes: tuple[tuple[Mode, list[Any]], ...] = (("counters", counters), ("events", events))
    for mode, rows in modes:
        taken = fast.json(mode, json.dumps(rows).encode())
        assert taken is not None and plain(taken) == plain(RowBatch.of(looked.parse(mode, rows).rows))
    assert fast.json("counters", b'[{"video_id":"v","time":5,"column_0":3}]') is None


VALUES: list[Any] = [
    *(None, True, 0, -1, 1, 3.0, 1.5, MAX_COUNT, MAX_COUNT + 1, 2**63, 10**30, 1e300, -0.0, -1e-9, [], {}),
    *(
        "",
        "3",
        "x" * 24,
        "x" * 25,
        "é" * 24,
        "view",
        "clap",
        "2025-01-01",
        "2025-01-01T00:00:00",
        "2025-01-01T00:00:00Z",
    ),
    *("2025-09-28T00:00:00.1234567+00:00", "1969-12-31T23:59:59Z", "9999-12-31T23:59:59Z"),
    *(NOW_US // 10**6 + 60, NOW_US // 10**6 + 61, NOW_US / 1e6 + 60.0000001, 9_100_000_000, 253_402_300_800),
]


@pytest.mark.parametrize("mode", ["events", "counters"])
@pytest.mark.parametrize("value", VALUES, ids=[repr(value)[:30] for value in VALUES])
def test_unusual_values_are_declined_or_read_as_by_the_parser(mode: Mode, value: Any) -> None:
    base = GOOD if mode == "events" else COUNTERS
    changes = [
        {field: value} for field in ("video_id", "time", "type", "count", "reach", "id", "views", "likes", "other")
    ]
    changes += [{"signals": value}, {"signals": {"rank": value, "heat": 2}}, {"signals": {"views": value}}]
    for change in changes:
        field, rows = next(iter(change)), [base, {**base, **change}]
        expected = careful(mode, rows)
        assert same(FAST.json(mode, json.dumps(rows).encode()), expected), field
        assert same(FAST.items(mode, rows), expected), field
        assert same(FAST.lines(mode, [json.dumps(row).encode() for row in rows]), expected), field


@pytest.mark.parametrize(
    "text",
    [
        b'[{"video_id":"\\ud800","time":1,"type":"view"}]',
        b'[{"video_id":"\\ud83d\\ude00","time":1,"type":"view"}]',
        b'[{"video_id":"v","time":NaN,"type":"view"}]',
        b'[{"video_id":"v","time":1e400,"type":"view"}]',
        b'[{"video_id":"\xff","time":1,"type":"view"}]',
        b'[{"video_id":"a\nb","time":1,"type":"view"}]',
        b'[{"video_id":"v","time":1,"type":"view","type":"like"}]',
        b'[{"video_id":"v","time":1,"type":"view"}] x',
        b'[{"video_id":"v","time":1,"type":"view"},]',
        b'\xef\xbb\xbf[{"video_id":"v","time":1,"type":"view"}]',
        b'{"rows":[{"video_id":"v","time":1,"type":"view"}],"more":1}',
        b'{"rows":[{"video_id":"v","time":1,"type":"view"}],"rows":[]}',
        b'[{"video_id":"v","t\\u0069me":1,"type":"view"}]',
        b"[" * 100_000,
        b"null",
        b"",
    ],
)
def test_unusual_json(text: bytes) -> None:
    try:
        expected = careful("events", parse_rows(text))
    except Malformed:
        expected = None
    assert same(FAST.json("events", text), expected)
    assert same(FAST.lines("events", [text]), careful("events", [parse_line(text)]))


def test_text_that_utf_8_cannot_encode() -> None:
    for field in ("video_id", "id"):
        assert FAST.items("events", [{**GOOD, field: "\ud800"}]) is None


ROWS = st.fixed_dictionaries(
    {
        "video_id": st.text(max_size=26),
        "time": st.floats(0, 1.8e9) | st.integers(0, 2**40) | st.datetimes().map(lambda time: time.isoformat() + "Z"),
        "type": st.sampled_from(["view", "like", "views"]),
    },
    optional={
        "count": st.integers(-1, 2**54),
        "reach": st.integers(-1, 2**54) | st.none(),
        "id": st.text(max_size=26),
    },
)


@given(st.lists(ROWS, max_size=4))
def test_any_batch(rows: list[Any]) -> None:
    expected = careful("events", rows)
    fast = FAST.json("events", json.dumps(rows).encode())
    assert same(fast, expected)


def test_signals_are_decoded() -> None:
    rows = [COUNTERS, {**COUNTERS, "signals": {"rank": 3, "heat": -0.5, "gone": None}}, {**COUNTERS, "signals": {}}]
    rows.append({"video_id": "v", "time": 1_759_000_000, "signals": {"rank": 2}})
    fast = FAST.json("counters", json.dumps(rows).encode())
    assert fast is not None and same(fast, careful("counters", rows))
    assert fast.cells is not None and fast.cells[1] == (("view", 3), ("~heat", -0.5), ("~rank", 3.0))


@given(st.lists(st.text(min_size=1), unique=True))
def test_packed_ids_do_not_collide(ids: list[str]) -> None:
    packed = packed_ids(ids)
    assert len(set(packed)) == len(ids)
    assert all(p[0] == len(p) - 1 <= max(MAX_PLAIN, 13) for p in packed)
