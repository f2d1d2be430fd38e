"""The store's refusals in words: reason code and place -> field, value, what is allowed."""

from __future__ import annotations

from model.engagement.types import counter_column
from service.store.row import MAX_COUNT, Rejection, Row
from service.times import iso


def rejection(row: Row, reason: str, place: str, published_us: int | None) -> Rejection:
    """Why the store refused ``row``; ``place`` is the type it is about, where it is about one."""
    if reason == "before_publication":
        limit = f" ({iso(published_us)})" if published_us is not None else ""
        return Rejection(row.mode, row.index, reason, "time", iso(row.time_us), f"published_at{limit} or later")
    if reason == "mode_conflict":
        other = "counters" if row.mode == "events" else "events"
        allowed = f"{other} only: this video's type {place!r} is fed by {other}"
        return Rejection(row.mode, row.index, reason, _field(row, place, "type"), _value(row, place, place), allowed)
    if reason == "overflow":
        field = "reach" if place == "reach" else _field(row, place, "count")
        value = str(row.reach) if place == "reach" else str(dict(row.cells)[place])
        return Rejection(row.mode, row.index, reason, field, value, f"a sum of at most {MAX_COUNT} a video")
    if reason == "parking_full":
        allowed = "a registered video, or fewer rows ahead of its registration"
        return Rejection(row.mode, row.index, reason, "video_id", row.video_id, allowed, retryable=True)
    if reason == "damaged":
        allowed = "a video whose stored record can be read; DELETE the video and register it again"
        return Rejection(row.mode, row.index, reason, "video_id", row.video_id, allowed)
    raise ValueError(reason)


def _field(row: Row, kind: str, of_event: str) -> str:
    return of_event if row.mode == "events" else counter_column(kind)


def _value(row: Row, kind: str, of_event: str) -> str:
    return of_event if row.mode == "events" else str(dict(row.cells)[kind])
