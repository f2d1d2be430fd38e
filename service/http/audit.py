"""The audit log. It has one JSON line, on standard error, for each request that may have changed something.

{"event":"audit","timestamp":...,"request_id":...,"key":"1f3a9c20","client":"10.0.0.7","method":"POST","route":"/events",
 "status":200,"accepted":12}

``key`` is the beginning of the SHA-256 of the API key. ``video`` is the beginning of the SHA-256 of a video's id. Someone
who knows the id can therefore find the lines about the video. The id itself is not in the log, so the log does not keep the ids of
deleted videos.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service.http.visit import Visit

_DIGITS: Final = 16


def video_digest(video_id: str) -> str:
    """Return the digest that stands for a video's id in the audit log."""
    return hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


class Audit:
    """Writes the audit log. If ``enabled`` is False, nothing is written."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._lines: list[bytes] = []

    def __call__(self, visit: Visit, **fields: Any) -> None:
        """Write a line about a request. ``fields`` are added to the line."""
        if not self._enabled:
            return
        line = orjson.dumps(
            {
                "event": "audit",
                "timestamp": datetime.now(UTC),
                "request_id": visit.request_id,
                "key": visit.key.name if visit.key is not None else None,
                "client": visit.address,
                **fields,
            }
        )
        # If several requests end in the same pass of the event loop, their lines are written together in the next pass.
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        self._lines.append(line)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        sys.stderr.write(b"\n".join([*lines, b""]).decode())
        sys.stderr.flush()
