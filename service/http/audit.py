"""The audit log: one JSON line on standard error for each request that may have changed something.

{"event":"audit","timestamp":...,"request_id":...,"key":"1f3a9c20","client":"10.0.0.7","method":"POST","route":"/events",
 "status":200,"accepted":12}

``key`` is the beginning of the SHA-256 of the API key. A video is named by the beginning of the SHA-256 of its id (``video``):
with the id its lines can be found, but the id of a deleted video is not kept.
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
    """The name of a video in the audit log."""
    return hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:_DIGITS]


class Audit:
    """Writes the lines; ``enabled`` False: writes nothing."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._lines: list[bytes] = []

    def __call__(self, visit: Visit, **fields: Any) -> None:
        """Write a line about a request, with further fields."""
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
        # Lines of requests that end in the same pass of the event loop are written together in the next one.
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        self._lines.append(line)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        sys.stderr.write(b"\n".join([*lines, b""]).decode())
        sys.stderr.flush()
