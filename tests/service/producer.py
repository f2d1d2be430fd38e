"""Producers of events that follow the protocol: every row has an id, and a batch is sent until it is acknowledged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import httpx

from tests.service.running import T0

BATCH = 20
"""Rows of a batch, each one view. A batch is for one video, so it is stored whole or not at all."""
_PAUSE_S = 0.01


class Producer:
    """Sends batches for one video, one after the other.

    ``acknowledged_at`` holds the time (``time.monotonic()``) of each batch's acknowledgement; its length is the number
    of the batch under way.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.acknowledged_at: list[float] = []
        self.news = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def acknowledged(self) -> int:
        """Batches that were acknowledged."""
        return len(self.acknowledged_at)

    def rows(self, batch: int) -> list[dict[str, Any]]:
        return [
            {"video_id": self.name, "time": T0 + (batch * 7 + i) % 5000, "type": "view", "id": f"{batch}-{i}"}
            for i in range(BATCH)
        ]

    def start(self, url: Callable[[], str]) -> None:
        """Send to ``url()``, in a thread of its own."""
        self.news.clear()
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(url,))
        self._thread.start()

    def stop(self) -> None:
        """Stop after the present batch, acknowledged or not."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join(30)

    def repeat(self, http: httpx.Client, first: int) -> None:
        """Send all batches from ``first`` to the present one again, one by one."""
        for batch in range(first, self.acknowledged + 1):
            self._send(http, batch)

    def stored(self, http: httpx.Client) -> int:
        """Batches that the store holds."""
        answer = http.get(f"/videos/{self.name}")
        assert answer.status_code == 200 and not answer.json()["stale"], answer.text
        batches, rest = divmod(answer.json()["counts"].get("view", 0), BATCH)
        assert rest == 0, "a batch was stored in part"
        return int(batches)

    def _send(self, http: httpx.Client, batch: int) -> None:
        answer = http.post("/events", json=self.rows(batch))
        assert answer.status_code == 200, answer.text
        told = answer.json()
        assert told["accepted"] + told["duplicate"] == BATCH and not told["rejected"], told

    def _run(self, url: Callable[[], str]) -> None:
        with httpx.Client(base_url=url(), timeout=10) as http:
            while not self._stop.is_set():
                try:
                    answer = http.post("/events", json=self.rows(self.acknowledged))
                except httpx.HTTPError:
                    time.sleep(_PAUSE_S)
                    continue
                if answer.status_code != 200:
                    time.sleep(_PAUSE_S)
                    continue
                self.acknowledged_at.append(time.monotonic())
                self.news.set()
