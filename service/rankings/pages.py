"""Pages of the lists that ``ranking`` keeps.

A list is ordered by score, then by id, both descending; a cursor is the place (score, id) of the last item given. So a
walk never gives an item twice, nor leaves one out, while scores stay as they are, however many are equal. A video whose score
changes during a walk moves in the list: it may be met again further down, or be missed.
"""

from __future__ import annotations

import base64
from typing import Any, Final, NamedTuple

import msgspec

from model.engagement.bins import SECOND_US
from service.problems import Invalid
from service.rankings.updater import scored
from service.store import keys
from service.store.redis.connection import RedisConnection
from service.times import iso

MAX_LIMIT: Final = 200
DEFAULT_LIMIT: Final = 50
_CURSOR_LENGTH: Final = 8192


class Place(NamedTuple):
    """Where a page ended."""

    sort: str
    score: float
    video_id: str


def parse_sort(text: str | None) -> str:
    """One of ``SORTS``."""
    if text is None:
        return keys.SORTS[0]
    if text not in keys.SORTS:
        raise Invalid("sort", text, f"one of {', '.join(keys.SORTS)}")
    return text


def parse_limit(text: str | None) -> int:
    """Items in a page."""
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_LIMIT):
        raise Invalid("limit", text, f"a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def parse_cursor(text: str | None, sort: str) -> Place | None:
    """The place that a cursor names."""
    if text is None:
        return None
    try:
        if len(text) > _CURSOR_LENGTH:
            raise ValueError
        place = msgspec.json.decode(base64.b64decode(text, b"-_", validate=True), type=Place)
        place.video_id.encode()
    except (ValueError, msgspec.MsgspecError):
        place = None
    if place is None or place.sort != sort:
        raise Invalid("cursor", text, f"next_cursor of an earlier page with sort={sort}, unchanged")
    return place


class RankingPages:
    """Reads pages."""

    def __init__(self, redis: RedisConnection) -> None:
        self._redis = redis

    async def page(self, sort: str, limit: int, after: Place | None) -> dict[str, Any]:
        """One page as it is answered."""
        start = 0 if after is None else await self._rank_after(after)
        key = keys.rank(sort)
        found = scored(
            (await self._redis.pipeline("list", [["ZRANGE", key, start, start + limit - 1, "REV", "WITHSCORES"]]))[0]
        )
        names = [name for name, _ in found]
        rows = (await self._redis.pipeline("list", [["HMGET", keys.RANK_ROWS, *names]]))[0] if names else []
        cursor = None
        if len(found) == limit:
            place = Place(sort, found[-1][1], names[-1].decode("utf-8", "replace"))
            cursor = base64.urlsafe_b64encode(msgspec.json.encode(place)).decode()
        return {
            "sort": sort,
            "videos": [told for item, row in zip(found, rows, strict=True) if (told := _row(*item, row)) is not None],
            "next_cursor": cursor,
        }

    async def _rank_after(self, place: Place) -> int:
        key, name = keys.rank(place.sort), place.video_id.encode()
        score, rank, above, ties = await self._redis.pipeline(
            "list",
            [
                ["ZSCORE", key, name],
                ["ZREVRANK", key, name],
                ["ZCOUNT", key, f"({place.score!r}", "+inf"],
                ["ZCOUNT", key, repr(place.score), repr(place.score)],
            ],
        )
        if score is not None and float(score) == place.score:
            return int(rank) + 1
        # The item itself has moved: look for the first smaller id among those of its score.
        low, high = int(above), int(above) + int(ties)
        while low < high:
            middle = (low + high) // 2
            there = (await self._redis.pipeline("list", [["ZRANGE", key, middle, middle, "REV"]]))[0]
            if there and there[0] >= name:
                low = middle + 1
            else:
                high = middle
        return low


class _Row(msgspec.Struct):
    title: str | None
    counts: dict[str, int]
    value_now: float
    expected: float
    horizon_us: int
    as_of_us: int


_decoder: Final = msgspec.json.Decoder(_Row)


def _row(name: bytes, score: float, row: bytes | None) -> dict[str, Any] | None:
    """An item of a page; None where the row is gone (its video was forgotten between the two reads) or cannot be read."""
    video_id = keys.member(name)
    if row is None or video_id is None:
        return None
    try:
        told = _decoder.decode(row)
        as_of = iso(told.as_of_us)
    except (msgspec.MsgspecError, UnicodeError, ValueError, OverflowError):
        return None
    return {
        "video_id": video_id,
        "score": score,
        "title": told.title,
        "counts": told.counts,
        "value_now": told.value_now,
        "expected": told.expected,
        "horizon_s": told.horizon_us / SECOND_US,
        "as_of": as_of,
    }
