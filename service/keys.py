"""Names of everything the store keeps.

All keys of one video share the hash tag ``{video_id}``, so one function call may touch them all in a cluster.
"""

from __future__ import annotations

from typing import Final

CHANGES: Final = "m3tr:changes"
"""Capped stream of (video_id, version): what changed."""

ACTIVE: Final = "m3tr:active"
"""Sorted set of video ids by the time of their last accepted change (seconds)."""

PARKED: Final = "m3tr:parked"
"""Sorted set of unregistered video ids that have parked rows, by the time the rows expire (seconds)."""

_ESCAPES: Final = str.maketrans({"%": "%25", "{": "%7B", "}": "%7D"})


def video_prefix(video_id: str) -> str:
    """Prefix of every key of a video; braces in the id are escaped, so that the hash tag is the whole id."""
    return f"m3tr:{{{video_id.translate(_ESCAPES)}}}:"


def video_keys(video_id: str) -> list[str]:
    """Keys in the order the functions take them: meta, bins, parked, parked ids, prefix of the id sets."""
    prefix = video_prefix(video_id)
    return [prefix + name for name in ("meta", "bins", "parked", "parked-ids", "ids:")]
