"""Explains why the store refused a row. A reason code is converted to the field, its value, and what is allowed."""

from __future__ import annotations

from model.engagement.types import counter_column
from service.store.rows.outcome import Rejection
from service.store.rows.row import InputRow
from service.store.rows.row_fields import COUNT, MAX_COUNT, REACH, TIME, TYPE, VIDEO_ID
from service.times import iso


def rejection(row: InputRow, reason: str, subject: str, published_us: int | None) -> Rejection:
    """Explain why the store refused ``row``. ``subject`` is the type or field that the reason concerns, or empty."""
    if reason == "before_publication":
        limit = f" ({iso(published_us)})" if published_us is not None else ""
        return Rejection(row.mode, row.index, reason, TIME, iso(row.time_us), f"published_at{limit} or later")
    if reason == "mode_conflict":
        other = "counters" if row.mode == "events" else "events"
        allowed = f"{other} only: this video's type {subject!r} is fed by {other}"
        field = TYPE if row.mode == "events" else counter_column(subject)
        value = subject if row.mode == "events" else str(dict(row.cells)[subject])
        return Rejection(row.mode, row.index, reason, field, value, allowed)
    if reason == "overflow":
        if subject == REACH.name:
            field, value = REACH.name, str(row.reach)
        else:
            field = COUNT.name if row.mode == "events" else counter_column(subject)
            value = str(dict(row.cells)[subject])
        return Rejection(row.mode, row.index, reason, field, value, f"a sum of at most {MAX_COUNT} per video")
    if reason == "parking_full":
        allowed = "a registered video, or fewer rows before its registration"
        return Rejection(row.mode, row.index, reason, VIDEO_ID, row.video_id, allowed, retryable=True)
    if reason == "damaged":
        allowed = "a video whose stored record can be read; DELETE the video and register it again"
        return Rejection(row.mode, row.index, reason, VIDEO_ID, row.video_id, allowed)
    raise ValueError(reason)
