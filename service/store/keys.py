"""Names of all keys in the store.

All keys of one video share the hash tag ``{video_id}``, so in a cluster one function call may touch all of them.
"""

from __future__ import annotations

from typing import Final

CHANGES: Final = "m3tr:changes"
"""Capped stream of changes: each entry's field ``videos`` is a JSON list of [video_id, version], or of
[tombstone, 0] for a deleted video."""

FORMAT: Final = "m3tr:format"
"""Version of the store's format, and of its bins (JSON)."""

ACTIVE_MODEL: Final = "m3tr:active-model"
"""Hash of the bundle that was activated last; absent before the first activation."""

PARKED: Final = "m3tr:parked"
"""Sorted set of unregistered video ids that have parked rows, by the time the rows expire (seconds)."""

INGEST: Final = "m3tr:ingest"
"""Stream that producers append rows to."""

INGEST_DEAD: Final = "m3tr:ingest:dead"
"""Capped stream of rows from ``INGEST`` that cannot be stored, each with the reason."""

RANK_DUE: Final = "m3tr:{rank}:due"
"""Sorted set of video ids by the time at which their rank is due to be updated (seconds)."""

RANK_AT: Final = "m3tr:{rank}:at"
"""When a replica last updated any video's rank (seconds)."""

RANK_ROWS: Final = "m3tr:{rank}:rows"
"""Hash from video id to what the rankings show about it (JSON)."""

FORGOTTEN: Final = "m3tr:{forgotten}:tombstones"
"""Sorted set of digests of deleted videos' ids, by the time of the deletion (us)."""

FORGOTTEN_LIFTED: Final = "m3tr:{forgotten}:lifted"
"""Sorted set of the members of ``FORGOTTEN`` that were registered again."""

FORGOTTEN_SWEPT: Final = "m3tr:{forgotten}:swept"
"""Time (us) of the newest tombstone whose video is no longer in any stream."""

FORGOTTEN_LEASE: Final = "m3tr:{forgotten}:lease"
"""Lease of the replica that sweeps the streams."""

FORGOTTEN_REWRITTEN: Final = "m3tr:{forgotten}:rewritten"
"""Time (us) of the newest tombstone whose video is no longer in the embedded store's log, after the last finished rewrite."""

RETENTION: Final = "m3tr:{retention}:due"
"""Sorted set of video ids by the time at which retention is due to check them (seconds)."""

RETENTION_SEEDED: Final = "m3tr:{retention}:seeded"
"""Exists while every video is known to be in ``RETENTION``."""

RETENTION_LEASE: Final = "m3tr:{retention}:lease"
"""Lease of the replica that deletes old videos."""

MATURING: Final = "m3tr:maturing"
"""Sorted set of the banks that have a set ``maturing(bank)``, by the time one was last used (seconds)."""

EVERY_META: Final = "m3tr:{*}:meta"
"""Pattern of the key that every registered video has."""

LABELS_LEASE: Final = "m3tr:{labels}:lease"
"""Lease of the replica that scores forecasts."""

SAMPLING_LEASE: Final = "m3tr:{labels}:sampling"
"""Lease of the replica that makes the forecasts that are scored."""

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


SORTS: Final = ("rising", "expected", "views")
"""What rankings are sorted by."""


def rank(sort: str) -> str:
    """Sorted set of video ids by the score of one ranking; all keys with ``{rank}`` share one slot."""
    return f"m3tr:{{rank}}:{sort}"


def maturing(bank: str) -> str:
    """Sorted set of video ids by the time at which they are due to enter a bank (seconds); with ":lease", the lease for it."""
    return f"m3tr:{{maturing-{bank}}}"


def forgotten_by(bank: str) -> str:
    """Time (us) up to which a bank has obeyed the tombstones."""
    return f"m3tr:{{forgotten}}:by:{bank}"


def label_key(name: str) -> str:
    """A key of the labels and their scores; all these keys share one slot."""
    return f"m3tr:{{labels}}:{name}"


def video_prefix(video_id: str) -> str:
    """Prefix of every key of a video; braces in the id are escaped, so that the hash tag is the whole id."""
    if "{" in video_id or "}" in video_id or "%" in video_id:
        video_id = video_id.translate(_ESCAPES)
    return f"m3tr:{{{video_id}}}:"


def video_id_of(key: bytes) -> str | None:
    """The video that a key belongs to; None for a key of another kind."""
    text = member(key)
    if text is None or "{" not in text:
        return None
    name = text.split("{", 1)[1].split("}", 1)[0]
    return name.replace("%7B", "{").replace("%7D", "}").replace("%25", "%")


def member(name: bytes) -> str | None:
    """A member of a set as a video id; None where it is not UTF-8, so this service has not written it."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
