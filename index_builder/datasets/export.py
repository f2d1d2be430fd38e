"""`m3tr-build export`: writes what a service has collected as a data set for training.

For each bin of a video's age, the store knows how many engagements happened, but not at which time within the bin. Each
bin becomes one row. The time of the row is the last instant of the bin. For the newest bin, the time of the row is the
time of the newest stored row. All of the bin's count was known at that time. When the data set is read, the row is
assigned to the age bin that it came from.

Only the service knows the layout of the store. So this module starts ``service.dump`` as a child process. The child
process reads the store and writes JSON lines, and this module reads these lines.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import msgspec
import numpy as np

from index_builder.datasets.dataset_writer import DataSetWriter, Exported
from index_builder.datasets.file_format import LAYOUT
from index_builder.progress import progress
from model.engagement.history import History, Mode, Readings, Series
from model.engagement.video import Video
from model.errors import DataError

__all__ = ["Exported", "export_store"]


class _Series(msgspec.Struct):
    mode: Mode
    bins: list[int]
    values: list[int]


class _Readings(msgspec.Struct):
    bins: list[int]
    values: list[float]


class _Damaged(msgspec.Struct):
    video_id: str
    why: str


class _Record(msgspec.Struct):
    video: dict[str, Any]
    newest_us: int | None
    series: dict[str, _Series]
    reach: list[tuple[int, int]]
    signals: dict[str, _Readings]

    def described(self) -> Video:
        metadata = {name: value for name, value in self.video.items() if name not in ("video_id", "published_us")}
        return Video.from_metadata(self.video["video_id"], self.video["published_us"], metadata)

    def history(self) -> History:
        series = {
            name: Series(s.mode, np.array(s.bins, np.int64), np.array(s.values, np.int64))
            for name, s in self.series.items()
        }
        signals = {
            name: Readings(np.array(s.bins, np.int64), np.array(s.values, np.float64))
            for name, s in self.signals.items()
        }
        return History(series, dict(self.reach), signals)


def export_store(out: Path, *, redis_url: str | None = None, data_dir: Path | None = None) -> Exported:
    """Write the store to the folder ``out`` as a data set. Return what was written.

    The store is at ``redis_url``, or embedded in ``data_dir``.

    Raises:
        DataError: the store cannot be read or is empty, or ``out`` already contains a data set.
    """
    if there := [name for name in LAYOUT if (out / name).exists()]:
        raise DataError(f"{out}: already contains {', '.join(there)}; choose another folder or remove the files")
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".export-", dir=out) as part, _dump(redis_url, data_dir) as lines:
        total = int(msgspec.json.decode(next(lines))["videos"])
        writer = DataSetWriter(Path(part))
        with progress("export", total) as bar:
            for record in _records(lines):
                if isinstance(record, _Damaged):
                    writer.exported.damaged[record.video_id] = record.why
                else:
                    video = record.described()
                    newest_us = video.published_us if record.newest_us is None else record.newest_us
                    writer.add(video, record.history(), newest_us)
                bar.advance()
        if not total:
            raise DataError("the store has no registered video")
        writer.close()
        for name in writer.exported.rows:
            (Path(part) / name).rename(out / name)
    return writer.exported


def _records(lines: Iterator[bytes]) -> Iterator[_Record | _Damaged]:
    decoder, damaged = msgspec.json.Decoder(_Record), msgspec.json.Decoder(_Damaged)
    for n_read, line in enumerate(lines):
        if line.startswith(b'{"end":'):
            if msgspec.json.decode(line)["end"] == n_read:
                return
            break
        yield damaged.decode(line) if line.startswith(b'{"video_id":') else decoder.decode(line)
    raise DataError("the store was not read to its end")


@contextmanager
def _dump(redis_url: str | None, data_dir: Path | None) -> Iterator[Iterator[bytes]]:
    """Run ``service.dump`` as a child process, and yield an iterator over the lines that it writes."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("M3TR_")}
    command = [sys.executable, "-m", "service.dump"]
    if redis_url is None:
        command += ["--data-dir", str(data_dir)]
    else:
        # The URL is not passed on the command line, because every user of the machine can read command lines.
        environment["REDIS_URL"] = redis_url
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=environment)
        assert process.stdout is not None
        try:
            yield _until_exit(process.stdout, process, errors)
        finally:
            process.stdout.close()
            process.wait()


def _until_exit(out: IO[bytes], process: subprocess.Popen[bytes], errors: IO[bytes]) -> Iterator[bytes]:
    """Yield the lines of ``out``. If the child process failed, raise DataError with the last line of ``errors``."""
    yield from out
    if process.wait():
        errors.seek(0)
        printed = errors.read().decode("utf-8", "replace").strip().splitlines()
        reason = printed[-1] if printed else f"status {process.returncode}"
        raise DataError(f"the event store cannot be read: {reason}")
