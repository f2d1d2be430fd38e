"""Names of everything the store keeps.

All keys of one video share the hash tag ``{video_id}``, so one function call may touch them all in a cluster.
"""

from __future__ import annotations

from typing import Final

CHANGES: Final = "m3tr:changes"
"""Capped stream of what changed: each entry's field ``videos`` is a JSON list of [video_id, version], or of
[tombstone, 0] for a deleted one."""

FORMAT: Final = "m3tr:format"
"""Format of what is stored, and version of its bins (JSON)."""

ACTIVE_MODEL: Final = "m3tr:active-model"
"""Hash of the bundle that was activated last; absent before that."""

PARKED: Final = "m3tr:parked"
"""Sorted set of unregistered video ids that have parked rows, by the time the rows expire (seconds)."""

INGEST: Final = "m3tr:ingest"
"""Stream that producers append rows to."""

INGEST_DEAD: Final = "m3tr:ingest:dead"
"""Capped stream of rows from ``INGEST`` that could not be taken, each with the reason."""

RANK_DUE: Final = "m3tr:{rank}:due"
"""Sorted set of video ids by the time at which their place in the lists is to be looked at again (seconds)."""

RANK_AT: Final = "m3tr:{rank}:at"
"""When a video's place in the lists was looked at last, by any replica (seconds)."""

RANK_ROWS: Final = "m3tr:{rank}:rows"
"""Hash of what the lists say about a video (JSON)."""

FORGOTTEN: Final = "m3tr:{forgotten}:tombstones"
"""Sorted set of digests of the ids of deleted videos, by the time of the deletion (us)."""

FORGOTTEN_LIFTED: Final = "m3tr:{forgotten}:lifted"
"""Sorted set of those of ``FORGOTTEN`` that were registered again."""

FORGOTTEN_SWEPT: Final = "m3tr:{forgotten}:swept"
"""Time (us) of the newest tombstone whose video is in no stream any more."""

FORGOTTEN_LEASE: Final = "m3tr:{forgotten}:lease"
"""Held by the replica that sweeps the streams."""

FORGOTTEN_REWRITTEN: Final = "m3tr:{forgotten}:rewritten"
"""Time (us) of the newest tombstone whose video is not in the embedded store's log any more, once its rewrite has ended."""

RETENTION: Final = "m3tr:{retention}:due"
"""Sorted set of video ids by the time at which they are to be looked at for retention (seconds)."""

RETENTION_SEEDED: Final = "m3tr:{retention}:seeded"
"""There while every video is known to be in ``RETENTION``."""

RETENTION_LEASE: Final = "m3tr:{retention}:lease"
"""Held by the replica that ends old videos."""

MATURING: Final = "m3tr:maturing"
"""Sorted set of the banks that have a set ``maturing(bank)``, by the time one was last used (seconds)."""

EVERY_META: Final = "m3tr:{*}:meta"
"""Pattern of the key that every registered video has."""

LABELS_LEASE: Final = "m3tr:{labels}:lease"
"""Held by the replica that scores."""

SAMPLING_LEASE: Final = "m3tr:{labels}:sampling"
"""Held by the replica that makes the forecasts that are scored."""

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


SORTS: Final = ("rising", "expected", "views")
"""What lists are sorted by."""


def rank(sort: str) -> str:
    """Sorted set of video ids by one of the scores that lists are sorted by; all of ``{rank}`` shares one slot."""
    return f"m3tr:{{rank}}:{sort}"


def maturing(bank: str) -> str:
    """Sorted set of video ids by the time at which they are to enter a bank (seconds); with ":lease", who sees to it."""
    return f"m3tr:{{maturing-{bank}}}"


def forgotten_by(bank: str) -> str:
    """Time (us) up to which a bank has obeyed the tombstones."""
    return f"m3tr:{{forgotten}}:by:{bank}"


def label_key(name: str) -> str:
    """A key of the labels and their scores; all of them share one slot."""
    return f"m3tr:{{labels}}:{name}"


def video_prefix(video_id: str) -> str:
    """Prefix of every key of a video; braces in the id are escaped, so that the hash tag is the whole id."""
    if "{" in video_id or "}" in video_id or "%" in video_id:
        video_id = video_id.translate(_ESCAPES)
    return f"m3tr:{{{video_id}}}:"


def video_id_of(key: bytes) -> str | None:
    """The video that a key belongs to; None for one that is not ours."""
    text = member(key)
    if text is None or "{" not in text:
        return None
    name = text.split("{", 1)[1].split("}", 1)[0]
    return name.replace("%7B", "{").replace("%7D", "}").replace("%25", "%")


def member(name: bytes) -> str | None:
    """A video id as a member of a set; None for what is no text, which nobody of us has written."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
