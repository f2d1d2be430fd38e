"""kill -9 of the service and of its store, right after a 2xx: nothing acknowledged is lost, nothing is doubled."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from tests.service.conftest import Starter
from tests.service.live import T0

KILLS = 20
BATCH = 20


class Client:
    """Sends batches with ids one after the other, each until it is acknowledged."""

    def __init__(self) -> None:
        self.acknowledged = 0
        self.batch = 0
        self.after_ack = threading.Event()

    def rows(self, batch: int) -> list[dict[str, Any]]:
        return [
            {
                "video_id": f"v{i % 3}",
                "time": T0 + (batch * 7 + i) % 5000,
                "type": "view",
                "count": i + 1,
                "id": f"{batch}-{i}",
            }
            for i in range(BATCH)
        ]

    def send_until_it_dies(self, url: str) -> None:
        with httpx.Client(base_url=url, timeout=10) as http:
            while True:
                try:
                    answer = http.post("/events", json=self.rows(self.batch))
                except httpx.HTTPError:
                    return
                if answer.status_code != 200:
                    continue
                told = answer.json()
                assert told["accepted"] + told["duplicate"] == BATCH and not told["rejected"]
                self.acknowledged = self.batch
                self.batch += 1
                self.after_ack.set()


def test_nothing_is_lost_and_nothing_doubled(tmp_path: Path, fake_process: Starter) -> None:
    chance = random.Random(7)
    client = Client()
    process = fake_process(tmp_path / "data", M3TR_APPENDFSYNC="always")
    with httpx.Client(base_url=process.url) as http:
        for i in range(3):
            assert http.put(f"/videos/v{i}", json={"published_at": T0}).status_code == 200
    for kill in range(KILLS):
        client.after_ack.clear()
        thread = threading.Thread(target=client.send_until_it_dies, args=(process.url,))
        thread.start()
        assert client.after_ack.wait(20)
        # Half the time at once after an acknowledgement, half the time somewhere in the middle of the work.
        if kill % 2:
            time.sleep(chance.uniform(0, 0.05))
        process.kill(server=True)
        thread.join(20)
        process = fake_process(tmp_path / "data", M3TR_APPENDFSYNC="always")
    with httpx.Client(base_url=process.url) as http:
        # The batch under way at the last kill may or may not have been applied: the client repeats it.
        assert http.post("/events", json=client.rows(client.batch)).status_code == 200
        counts = [http.get(f"/videos/v{i}").json()["counts"]["view"] for i in range(3)]
    assert process.stop() == 0
    sent = [row for batch in range(client.batch + 1) for row in client.rows(batch)]
    assert counts == [sum(row["count"] for row in sent if row["video_id"] == f"v{i}") for i in range(3)]
    assert client.batch > KILLS
