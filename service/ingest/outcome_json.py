"""Converts the outcome of a batch of rows into JSON values."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Final

import orjson

from service.fair_turns import Turns
from service.store.rows.outcome import Outcome, Rejection

LISTED_AT_ONCE: Final = 256
"""Maximum number of rejected rows that are encoded in one turn on the event loop. Encoding them takes a few tenths of a millisecond."""


def rejection(rejected: Rejection) -> dict[str, Any]:
    """Return one rejected row as a JSON object."""
    return {
        "index": rejected.index,
        "reason": rejected.reason,
        "field": rejected.field,
        "value": rejected.value,
        "allowed": rejected.allowed,
        "retryable": rejected.retryable,
    }


def ignored_counters(result: Outcome) -> dict[str, Any]:
    """Return a JSON object with the member ``ignored``: the number of rows for each counter that the served bundle does not know.

    If there are no such counters, return an empty object.
    """
    return {"ignored": result.ignored} if result.ignored else {}


def outcome(result: Outcome) -> dict[str, Any]:
    """Return the outcome as a JSON object: the number of rows of each kind, and the reasons for rejections."""
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
    """Return the same object as ``outcome``. A long list of rejections is encoded in several parts, each in a turn of the client."""
    if len(result.rejections) <= LISTED_AT_ONCE:
        return outcome(result)
    parts = []
    for start in range(0, len(result.rejections), LISTED_AT_ONCE):
        await turns.take(client)
        parts.append(orjson.dumps(list(map(rejection, result.rejections[start : start + LISTED_AT_ONCE])))[1:-1])
    brief = replace(result, rejections=[], unlisted=result.rejected)
    return {**outcome(brief), "rejections": orjson.Fragment(b"[" + b",".join(parts) + b"]")}
