"""Write the content of the event store to standard output, as lines of JSON.

Run this module as ``python -m service.dump``. The dump is for programs that do not know the store's format, such as ``m3tr-build export``.
The dump reads the store at ``REDIS_URL``, or the embedded store in ``--data-dir``. No running service may be using that embedded store.

The first line is ``{"videos": n}``. One line per video follows. The last line is ``{"end": m}``, so that truncated output can be
recognized. The line of a damaged record is ``{"video_id": ..., "why": ...}``.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Final

import msgspec

from service.logs import configure_logs
from service.metrics import Metrics
from service.problems import Problem, Unavailable
from service.settings import RecordSettings
from service.store import keys
from service.store.format import FormatError, check_format
from service.store.functions import connect
from service.store.quarantine import Damaged
from service.store.redis.connection import RedisConnection
from service.store.redis.embedded_server import EmbeddedError, EmbeddedServer
from service.store.snapshot import Snapshot
from service.store.store import Store

_DEADLINE_S: Final = 30.0
_BATCH: Final = 100
_CHUNK: Final = 1000


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the dump. Return the exit status."""
    parser = argparse.ArgumentParser(prog="service.dump", description=__doc__)
    parser.add_argument("--data-dir", type=Path, help="folder of the embedded event store, instead of REDIS_URL")
    data_dir: Path | None = parser.parse_args(arguments).data_dir
    configure_logs()
    server: EmbeddedServer | None = None
    try:
        if data_dir is None:
            url = os.environ.get("REDIS_URL") or parser.error("--data-dir or REDIS_URL is needed")
        else:
            if not (data_dir / "store" / "appendonlydir").is_dir():
                raise EmbeddedError(f"{data_dir}: no embedded event store is in this folder")
            server = EmbeddedServer(data_dir, appendfsync="everysec")
            server.start()
            url = server.url
        asyncio.run(_dump(url, sys.stdout.buffer))
    except (EmbeddedError, FormatError, Problem, OSError, ValueError) as error:
        print(f"{error}", file=sys.stderr)
        return 1
    finally:
        if server is not None:
            server.stop()
    return 0


async def _dump(url: str, out: IO[bytes]) -> None:
    metrics = Metrics(request_deadline_s=_DEADLINE_S, store_deadline_s=_DEADLINE_S, bank_deadline_s=_DEADLINE_S)
    redis = connect(url, metrics, deadline_s=_DEADLINE_S, connections=2)
    try:
        with suppress(Unavailable):
            # A store that accepts no writes can be dumped too, even if its format is not recorded in it yet.
            await check_format(redis)
        # Collect the ids in a set, because a scan may return a key twice.
        names = sorted({name async for name in _registered(redis)})
        written = 0
        _line(out, {"videos": len(names)})
        store = Store(redis, RecordSettings.model_validate({}), metrics)
        for start in range(0, len(names), _BATCH):
            found = await store.read_many(dict.fromkeys(names[start : start + _BATCH]))
            for snapshot in found.values():
                if snapshot is not None:
                    _line(out, asdict(snapshot) if isinstance(snapshot, Damaged) else record(snapshot))
                    written += 1
        _line(out, {"end": written})
        out.flush()
    finally:
        await redis.close()


async def _registered(redis: RedisConnection) -> AsyncIterator[str]:
    cursor = ""
    while True:
        cursor, found = await redis.scan("dump", cursor, keys.EVERY_META, _CHUNK)
        for name in found:
            if (video_id := keys.video_id_of(name)) is not None:
                yield video_id
        if not cursor:
            return


def record(snapshot: Snapshot) -> dict[str, Any]:
    """Return a video as one JSON object.

    The object has the metadata, the time of the newest row, the bins and values of each type and signal, and the reach of each bin.
    """
    history, video = snapshot.history, snapshot.video
    return {
        "video": {"video_id": video.video_id, "published_us": video.published_us, **video.metadata()},
        "newest_us": snapshot.newest_us,
        "series": {
            kind: {"mode": series.mode, "bins": series.bins.tolist(), "values": series.values.tolist()}
            for kind, series in history.series.items()
        },
        "reach": [[int(index), int(value)] for index, value in history.reach.items()],
        "signals": {
            name: {"bins": readings.bins.tolist(), "values": readings.values.tolist()}
            for name, readings in history.signals.items()
        },
    }


def _line(out: IO[bytes], value: dict[str, Any]) -> None:
    out.write(msgspec.json.encode(value) + b"\n")


if __name__ == "__main__":
    sys.exit(main())
