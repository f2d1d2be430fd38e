"""The names of all keys in the store.

All keys of one video share the Redis hash tag ``{video_id}``. In a cluster they are therefore on one node, and one call of a Lua
function may use all of them.
"""

from __future__ import annotations

from typing import Final
from urllib.parse import quote

CHANGES: Final = "m3tr:changes"
"""Stream of changes with a maximum length. Each entry's field ``videos`` is a JSON list of [video_id, version] pairs, or of
[tombstone, 0] pairs for deleted videos."""

FORMAT: Final = "m3tr:format"
"""Versions of the store's format and of its age bins, as JSON."""

ACTIVE_MODEL: Final = "m3tr:active-model"
"""Version (digest) of the bundle that was activated last. The key does not exist before the first activation."""

PARKED: Final = "m3tr:parked"
"""Sorted set of the unregistered videos that have parked rows. The score is the time at which the rows expire (s)."""

INGEST: Final = "m3tr:ingest"
"""Stream to which producers append rows."""

INGEST_DEAD: Final = "m3tr:ingest:dead"
"""Stream, with a maximum length, of rows from ``INGEST`` that cannot be stored. Each entry gives the reason."""

RANK_DUE: Final = "m3tr:{rank}:due"
"""Sorted set of video ids. The score is the time at which the video's rank must be updated (s)."""

RANK_AT: Final = "m3tr:{rank}:at"
"""Time (s) at which a replica last updated the rank of any video."""

RANK_ROWS: Final = "m3tr:{rank}:rows"
"""Redis hash that maps each video id to the fields that rankings show about the video. The fields are JSON."""

RANK_METRICS: Final = "m3tr:{rank}:metrics"
"""Set of the further metrics that have rankings of their own. The names are percent-encoded."""

FORGOTTEN: Final = "m3tr:{forgotten}:tombstones"
"""Sorted set of tombstones, which are digests of deleted videos' ids. The score is the time of the deletion (us)."""

FORGOTTEN_LIFTED: Final = "m3tr:{forgotten}:lifted"
"""Sorted set of the tombstones whose videos were registered again. The scores are the same as in ``FORGOTTEN``."""

FORGOTTEN_SWEPT: Final = "m3tr:{forgotten}:swept"
"""Time (us) of the newest tombstone whose video is no longer in any stream."""

FORGOTTEN_LEASE: Final = "m3tr:{forgotten}:lease"
"""Lease of the replica that removes deleted videos from the streams."""

FORGOTTEN_REWRITTEN: Final = "m3tr:{forgotten}:rewritten"
"""Time (us) of the newest tombstone whose video is no longer in the embedded store's log. The key is set after the log is rewritten."""

RETENTION: Final = "m3tr:{retention}:due"
"""Sorted set of video ids. The score is the time at which the service must check whether the video has been inactive for
too long (s)."""

RETENTION_SEEDED: Final = "m3tr:{retention}:seeded"
"""This key exists while all videos are known to be in ``RETENTION``."""

RETENTION_LEASE: Final = "m3tr:{retention}:lease"
"""Lease of the replica that deletes old videos."""

MATURING: Final = "m3tr:maturing"
"""Sorted set of the keys ``maturing(bank)``, one for each bank. The score is the time at which that key was last used (s)."""

EVERY_META: Final = "m3tr:{*}:meta"
"""Pattern of the key ``meta``, which every registered video has."""

LABELS_LEASE: Final = "m3tr:{labels}:lease"
"""Lease of the replica that scores forecasts."""

SAMPLING_LEASE: Final = "m3tr:{labels}:sampling"
"""Lease of the replica that makes the forecasts to be scored."""

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


SORTS: Final = ("rising", "expected", "views")
"""The values that rankings can be sorted by."""


def ranking(sort: str, further: str | None = None) -> str:
    """Return the name of a ranking. Without ``further``, it is that of the bundle's first metric."""
    return sort if further is None else f"{sort}:{ranked_metric(further)}"


def ranked_metric(metric: str) -> str:
    """Return the name of a further metric as it stands in ``RANK_METRICS`` and in the names of its rankings."""
    return quote(metric, safe="")


def rank(sort: str) -> str:
    """Return the key of a ranking: a sorted set of video ids by score. All keys with ``{rank}`` share one cluster slot."""
    return f"m3tr:{{rank}}:{sort}"


def maturing(bank: str) -> str:
    """Return the key of a sorted set of video ids. The score is the time at which the video must be added to the bank (s).

    This key followed by ``:lease`` is the key of the lease for this work.
    """
    return f"m3tr:{{maturing-{bank}}}"


def forgotten_by(bank: str) -> str:
    """Return the key that holds a time (us). The bank has removed all videos that were deleted up to this time."""
    return f"m3tr:{{forgotten}}:by:{bank}"


def label_key(name: str) -> str:
    """Return a key for labels or their scores. Labels are forecasts that have not been scored yet. All these keys share one slot."""
    return f"m3tr:{{labels}}:{name}"


def video_prefix(video_id: str) -> str:
    """Return the prefix of all keys of a video. Braces in the id are escaped, so the hash tag is always the whole id."""
    if "{" in video_id or "}" in video_id or "%" in video_id:
        video_id = video_id.translate(_ESCAPES)
    return f"m3tr:{{{video_id}}}:"


def video_id_of(key: bytes) -> str | None:
    """Return the id of the video that a key belongs to, or None for a key without a hash tag."""
    text = member(key)
    if text is None or "{" not in text:
        return None
    name = text.split("{", 1)[1].split("}", 1)[0]
    return name.replace("%7B", "{").replace("%7D", "}").replace("%25", "%")


def member(name: bytes) -> str | None:
    """Decode a set's member as a video id. Return None if the member is not UTF-8. This service writes no such member."""
    try:
        return name.decode()
    except UnicodeDecodeError:
        return None
