"""What became of a batch, as JSON values for a response."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import orjson

from service.store.rows.outcome import Outcome, Rejection
from service.turns import Turns

ENCODED_AT_ONCE: Final = 256
"""Rejections that are encoded in one turn: some tenths of a millisecond."""


def rejection(refused: Rejection) -> dict[str, Any]:
    """One refused row."""
    return {
        "index": refused.index,
        "reason": refused.reason,
        "field": refused.field,
        "value": refused.value,
        "allowed": refused.allowed,
        "retryable": refused.retryable,
    }


def ignored(result: Outcome) -> dict[str, Any]:
    """The member ``ignored``, where counters were ignored."""
    return {"ignored": result.ignored} if result.ignored else {}


def outcome(result: Outcome) -> dict[str, Any]:
    """The counts of rows, and each rejection."""
    return {
        "accepted": result.accepted,
        "duplicate": result.duplicate,
        "parked": result.parked,
        "rejected": result.rejected,
        "corrected": result.corrected,
        "rejections": [rejection(refused) for refused in result.rejections],
        **ignored(result),
    }


async def long_outcome(result: Outcome, turns: Turns, client: bytes) -> dict[str, Any]:
    """``outcome``; many rejections are encoded in several of the client's turns."""
    if len(result.rejections) <= ENCODED_AT_ONCE:
        return outcome(result)
    parts = []
    for start in range(0, len(result.rejections), ENCODED_AT_ONCE):
        await turns.take(client)
        parts.append(orjson.dumps(list(map(rejection, result.rejections[start : start + ENCODED_AT_ONCE])))[1:-1])
    brief = replace(result, rejections=[], unlisted=result.rejected)
    return {**outcome(brief), "rejections": orjson.Fragment(b"[" + b",".join(parts) + b"]")}
