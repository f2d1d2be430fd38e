"""Reads pages of the ranked lists.

A list is sorted by descending score. Items with equal scores are sorted by descending id. A cursor is the position (score, id) of a page's
last item. While scores do not change, paging returns every item exactly once, even if many scores are equal. If a video's score changes
between two pages, the video moves in the list. It may then be returned again, or be missed.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
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


class Position(NamedTuple):
    """Position of a page's last item. ``sort`` is the name of the ranking (``keys.ranking``)."""

    sort: str
    score: float
    video_id: str


def parse_sort(text: str | None) -> str:
    """Return the requested order of a list, which is one of ``SORTS``."""
    if text is None:
        return keys.SORTS[0]
    if text not in keys.SORTS:
        raise Invalid("sort", text, f"one of {', '.join(keys.SORTS)}")
    return text


def parse_metric(text: str | None, metrics: Sequence[str]) -> str | None:
    """Return the further metric whose list is requested, or None for the first of ``metrics``, those of the active bundle."""
    if text is not None and text not in metrics:
        raise Invalid("metric", text, f"one of {', '.join(metrics)}, which the served bundle forecasts")
    return None if text is None or text == metrics[0] else text


def parse_limit(text: str | None) -> int:
    """Return the requested number of items per page."""
    if text is None:
        return DEFAULT_LIMIT
    if not (text.isascii() and text.isdecimal() and len(text) < 10 and 1 <= int(text) <= MAX_LIMIT):
        raise Invalid("limit", text, f"a whole number from 1 to {MAX_LIMIT}")
    return int(text)


def parse_cursor(text: str | None, sort: str, further: str | None = None) -> Position | None:
    """Return the position that a cursor encodes, or None without a cursor."""
    if text is None:
        return None
    try:
        if len(text) > _CURSOR_LENGTH:
            raise ValueError
        position = msgspec.json.decode(base64.b64decode(text, b"-_", validate=True), type=Position)
        position.video_id.encode()
    except (ValueError, msgspec.MsgspecError):
        position = None
    if position is None or position.sort != keys.ranking(sort, further):
        asked = f"sort={sort}" if further is None else f"sort={sort} and metric={further}"
        raise Invalid("cursor", text, f"the unchanged next_cursor of an earlier page with {asked}")
    return position


class RankingPages:
    """Reads pages from the store."""

    def __init__(self, redis: RedisConnection) -> None:
        self._redis = redis

    async def page(self, sort: str, limit: int, after: Position | None, further: str | None = None) -> dict[str, Any]:
        """Return one page as the body of a response, of the list of a further metric or else of the bundle's first metric."""
        start = 0 if after is None else await self._rank_after(after)
        ranking = keys.ranking(sort, further)
        key = keys.rank(ranking)
        found = scored(
            (await self._redis.pipeline("list", [["ZRANGE", key, start, start + limit - 1, "REV", "WITHSCORES"]]))[0]
        )
        names = [name for name, _ in found]
        rows = (await self._redis.pipeline("list", [["HMGET", keys.RANK_ROWS, *names]]))[0] if names else []
        cursor = None
        if len(found) == limit:
            position = Position(ranking, found[-1][1], names[-1].decode("utf-8", "reposition"))
            cursor = base64.urlsafe_b64encode(msgspec.json.encode(position)).decode()
        return {
            "sort": sort,
            **({} if further is None else {"metric": further}),
            "videos": [
                video
                for item, row in zip(found, rows, strict=True)
                if (video := _video(*item, row, further)) is not None
            ],
            "next_cursor": cursor,
        }

    async def _rank_after(self, position: Position) -> int:
        key, name = keys.rank(position.sort), position.video_id.encode()
        score, rank, above, ties = await self._redis.pipeline(
            "list",
            [
                ["ZSCORE", key, name],
                ["ZREVRANK", key, name],
                ["ZCOUNT", key, f"({position.score!r}", "+inf"],
                ["ZCOUNT", key, repr(position.score), repr(position.score)],
            ],
        )
        if score is not None and float(score) == position.score:
            return int(rank) + 1
        # The page's last item has moved or is gone. Among the items with its old score, search for the first item with a smaller id.
        low, high = int(above), int(above) + int(ties)
        while low < high:
            middle = (low + high) // 2
            item = (await self._redis.pipeline("list", [["ZRANGE", key, middle, middle, "REV"]]))[0]
            if item and item[0] >= name:
                low = middle + 1
            else:
                high = middle
        return low


class _Values(msgspec.Struct):
    value_now: float
    expected: float
    mean: float | None = None


class _StoredVideo(msgspec.Struct):
    title: str | None
    counts: dict[str, int]
    value_now: float
    expected: float
    horizon_us: int
    as_of_us: int
    mean: float | None = None
    """None in a row that an earlier release wrote."""
    further: dict[str, _Values] = {}


_decoder: Final = msgspec.json.Decoder(_StoredVideo)


def _video(name: bytes, score: float, row: bytes | None, further: str | None) -> dict[str, Any] | None:
    """Return an item of a page.

    ``row`` holds the video's stored details. Return None if the row cannot be decoded, or if the row is missing because the video was
    deleted between the two reads.
    """
    video_id = keys.member(name)
    if row is None or video_id is None:
        return None
    try:
        stored = _decoder.decode(row)
        values = stored if further is None else stored.further[further]
        as_of = iso(stored.as_of_us)
    except (msgspec.MsgspecError, UnicodeError, ValueError, OverflowError, KeyError):
        return None
    return {
        "video_id": video_id,
        "score": score,
        "title": stored.title,
        "counts": stored.counts,
        "value_now": values.value_now,
        "expected": values.expected,
        "mean": values.mean,
        "horizon_s": stored.horizon_us / SECOND_US,
        "as_of": as_of,
    }
