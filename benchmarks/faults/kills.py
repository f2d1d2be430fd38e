"""kill -9 under concurrent writes: afterwards every acknowledged row must be there, and only once.

    python -m benchmarks.faults.kills                     200 kills, half of them with each appendfsync

Kills the service, its store, or both, at random times (``--seed``). After each kill the rows of every producer are counted before
anything is sent again. With ``always`` none may be missing. With ``everysec`` missing rows were acknowledged at most one second before
the kill. Then the producers send again, with the same ids, the rows that may be missing and many that are stored; nothing may count
twice. (kill -9 does not lose what the kernel has buffered, so it shows less than a power cut would.)
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import httpx

from tests.service.producer import BATCH, Producer
from tests.service.running import FAKE_COMMAND, T0, Process, wait_until

EVERYSEC_S = 1.0
REPEATED = 20
"""Acknowledged batches that every producer sends again after a kill."""


class Run:
    """A service that is killed repeatedly, with one ``appendfsync``."""

    def __init__(self, data_dir: Path, appendfsync: str, producers: int, chance: random.Random) -> None:
        self.appendfsync = appendfsync
        self.killed: Counter[str] = Counter()
        self.lost_s: list[float] = []
        self.duplicated = 0
        self._data_dir = data_dir
        self._chance = chance
        self._producers = [Producer(f"v{i}") for i in range(producers)]
        self.process = self._start()
        with self._http() as http:
            for producer in self._producers:
                http.put(f"/videos/{producer.name}", json={"published_at": T0}).raise_for_status()

    def kill_once(self) -> None:
        """Write, kill, restart, count, send again, count again."""
        for producer in self._producers:
            producer.start(lambda: self.process.url)
        for producer in self._producers:
            assert producer.news.wait(60), f"{producer.name} gets no response"
        time.sleep(self._chance.choice((0.0, self._chance.uniform(0, 0.05), self._chance.uniform(0, 1.5))))
        killed_at = self._kill(self._chance.choice(("service", "store", "both")))
        for producer in self._producers:
            producer.stop()
        if self.process.popen.returncode is not None:
            self.process = self._start()
        with self._http() as http:
            wait_until(lambda: self._all_current(http), 60)
            for producer in self._producers:
                stored = producer.stored(http)
                self.lost_s += [killed_at - at for at in producer.acknowledged_at[stored:] for _ in range(BATCH)]
                producer.repeat(http, max(0, min(stored, producer.acknowledged) - REPEATED))
                self.duplicated += (producer.stored(http) - producer.acknowledged - 1) * BATCH
                producer.acknowledged_at.append(time.monotonic())

    def report(self) -> bool:
        """Print the result; return whether it keeps the promise."""
        rows = sum(producer.acknowledged for producer in self._producers) * BATCH
        oldest_s = max(self.lost_s, default=0.0)
        good = not self.duplicated and (not self.lost_s if self.appendfsync == "always" else oldest_s <= EVERYSEC_S)
        print(
            f"{self.appendfsync}: {sum(self.killed.values())} kills ({dict(self.killed)}), {rows:,} rows acknowledged, "
            f"{len(self.lost_s)} of them lost (the oldest {oldest_s:.2f} s before the kill), {self.duplicated} duplicated"
        )
        return good

    def _start(self) -> Process:
        return Process(FAKE_COMMAND, self._data_dir, M3TR_APPENDFSYNC=self.appendfsync)

    def _http(self) -> httpx.Client:
        return httpx.Client(base_url=self.process.url, timeout=30)

    def _kill(self, what: str) -> float:
        """kill -9; return the time just before."""
        self.killed[what] += 1
        killed_at = time.monotonic()
        if what == "store":
            os.kill(self.process.server_pid, signal.SIGKILL)
        else:
            self.process.kill(server=what == "both")
        return killed_at

    def _all_current(self, http: httpx.Client) -> bool:
        with suppress(httpx.HTTPError):
            return all(
                response.status_code == 200 and not response.json()["stale"]
                for response in (http.get(f"/videos/{producer.name}") for producer in self._producers)
            )
        return False


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--producers", type=int, default=6)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    chance = random.Random(args.seed)
    good = True
    for appendfsync in ("always", "everysec"):
        with tempfile.TemporaryDirectory() as folder:
            run = Run(Path(folder) / "data", appendfsync, args.producers, chance)
            started = time.perf_counter()
            try:
                for kill in range(args.kills // 2):
                    run.kill_once()
                    if (kill + 1) % 20 == 0:
                        print(f"  {appendfsync}: {kill + 1} kills in {time.perf_counter() - started:.0f} s", flush=True)
                run.process.stop()
            finally:
                run.process.clean_up()
            good &= run.report()
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
