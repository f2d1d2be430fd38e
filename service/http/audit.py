"""The audit log: who changed what, one JSON line on standard error for each request that may have changed something.

{"event":"audit","timestamp":...,"request_id":...,"key":"1f3a9c20","client":"10.0.0.7","method":"POST","route":"/events",
 "status":200,"accepted":12}

``key`` is the beginning of the SHA-256 of the API key. A video is told by the beginning of the SHA-256 of its id (``video``): who
knows the id finds its lines, and a deleted video's id stays nowhere.
"""

from __future__ import annotations

import asyncio
import hashlib
import sys
from datetime import UTC, datetime
from typing import Any, Final

import orjson

from service.http.visit import Visit

_SHOWN: Final = 16


def told(video_id: str) -> str:
    """How a video is told of."""
    return hashlib.sha256(video_id.encode("utf-8", "surrogatepass")).hexdigest()[:_SHOWN]


class Audit:
    """Writes the lines; ``enabled`` False: none."""

    def __init__(self, enabled: bool) -> None:
        self._enabled = enabled
        self._lines: list[bytes] = []

    def __call__(self, visit: Visit, **what: Any) -> None:
        """Write a line about a visit."""
        if not self._enabled:
            return
        line = orjson.dumps(
            {
                "event": "audit",
                "timestamp": datetime.now(UTC),
                "request_id": visit.request_id,
                "key": visit.key.name if visit.key is not None else None,
                "client": visit.address,
                **what,
            }
        )
        # Lines of requests that end together are written together, in the loop's next pass.
        if not self._lines:
            asyncio.get_running_loop().call_soon(self._write)
        self._lines.append(line)

    def _write(self) -> None:
        lines, self._lines = self._lines, []
        sys.stderr.write(b"\n".join([*lines, b""]).decode())
        sys.stderr.flush()
