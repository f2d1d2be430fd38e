"""The outcome of a batch of rows as JSON values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import orjson

from service.fair_turns import Turns
from service.store.rows.outcome import Outcome, Rejection

LISTED_AT_ONCE: Final = 256
"""Rejected rows that are encoded in one turn: some tenths of a millisecond."""


def rejection(rejected: Rejection) -> dict[str, Any]:
    """One rejected row."""
    return {
        "index": rejected.index,
        "reason": rejected.reason,
        "field": rejected.field,
        "value": rejected.value,
        "allowed": rejected.allowed,
        "retryable": rejected.retryable,
    }


def ignored_counters(result: Outcome) -> dict[str, Any]:
    """The member ``ignored``: rows by counter that the served bundle does not know; empty if there are none."""
    return {"ignored": result.ignored} if result.ignored else {}


def outcome(result: Outcome) -> dict[str, Any]:
    """How many rows were accepted, duplicate, parked, rejected and corrected, and why rows were rejected."""
    return {
        "accepted": result.accepted,
        "duplicate": result.duplicate,
        "parked": result.parked,
        "rejected": result.rejected,
        "corrected": result.corrected,
        "rejections": [rejection(rejected) for rejected in result.rejections],
        **ignored_counters(result),
    }


async def long_outcome(result: Outcome, turns: Turns, client: bytes) -> dict[str, Any]:
    """``outcome``, with a long list of rejections encoded in several of the client's turns."""
    if len(result.rejections) <= LISTED_AT_ONCE:
        return outcome(result)
    parts = []
    for start in range(0, len(result.rejections), LISTED_AT_ONCE):
        await turns.take(client)
        parts.append(orjson.dumps(list(map(rejection, result.rejections[start : start + LISTED_AT_ONCE])))[1:-1])
    brief = replace(result, rejections=[], unlisted=result.rejected)
    return {**outcome(brief), "rejections": orjson.Fragment(b"[" + b",".join(parts) + b"]")}
