"""Replies of the store's functions are decoded into one type for each case."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from service.store.replies import (
    Changed,
    Current,
    DamagedReply,
    Failed,
    NotCounted,
    Parked,
    ParkingFull,
    PublicationConflict,
    Record,
    Refused,
    RefusedRow,
    Stale,
    Unchanged,
    decode_apply,
    decode_correct,
    parse_read,
)

CASES: list[tuple[list[Any], Any]] = [
    (["changed", 7, 5], Changed(7, 5)),
    (["unchanged", 7, 5, [0], [], []], Unchanged(7, 5, [0], [], [])),
    (
        ["changed", 7, 5, [1], [[2, "overflow", "view"]], [3], 4, 1, True],
        Changed(7, 5, [1], [RefusedRow(2, "overflow", "view")], [3], 4, 1, True),
    ),
    (["parked", 3, [], [[1, "parking_full", ""]]], Parked(3, [], [RefusedRow(1, "parking_full", "")])),
    (["full"], ParkingFull()),
    (["stale"], Stale()),
    (["conflict", 5], PublicationConflict(5)),
    (["refused", 5, [[0, "before_publication", "time"]]], Refused(5, [RefusedRow(0, "before_publication", "time")])),
    (["damaged", "damaged: meta is not a list"], DamagedReply("damaged: meta is not a list")),
    (["error", "ERR"], Failed("ERR")),
]


@pytest.mark.parametrize(("reply", "expected"), CASES, ids=lambda case: case[0] if isinstance(case, list) else "")
def test_each_reply_of_apply_has_a_type(reply: list[Any], expected: Any) -> None:
    assert decode_apply(msgspec.msgpack.encode([reply])) == [expected]


def test_a_value_of_a_wrong_type_is_damage_to_one_video_only() -> None:
    good, bad, *others = decode_apply(msgspec.msgpack.encode([["changed", 7, 5], ["changed", 7, 5.5], ["stale"]]))
    assert (good, others) == (Changed(7, 5), [Stale()])
    assert isinstance(bad, DamagedReply) and "float" in bad.why


def test_replies_of_correct() -> None:
    assert decode_correct(msgspec.msgpack.encode(["missing", 3])) == NotCounted(3)
    assert isinstance(decode_correct(msgspec.msgpack.encode(["corrected", "x", 3])), DamagedReply)


def test_replies_of_read() -> None:
    assert parse_read([]) is None
    assert parse_read([b"7"]) == Current()
    assert parse_read([b"damaged", b"damaged: about is missing"]) == DamagedReply("damaged: about is missing")
    assert parse_read([b"7", b"meta", b"{}", []]) == Record(b"meta", b"{}", [])
