"""Runs a service as a child process for the demo."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Final

from index_builder.replay.client import ServiceError

START_S: Final = 120.0
"""Time limit in seconds for the service to start listening."""
_STOP_S: Final = 30.0
_ADDRESS: Final = re.compile(r"listens on (http://\S+)")
_STOPPED: Final = (0, -signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT)
_LOG_LINES: Final = 15


class Served:
    """A running service."""

    def __init__(self, process: subprocess.Popen[str], url: str, log: Path) -> None:
        self.url = url
        self._process = process
        self._log = log

    def wait(self) -> None:
        """Wait until the service has ended.

        Raises:
            ServiceError: the service ended with an error, and not because it was told to stop.
        """
        if (code := self._process.wait()) not in _STOPPED:
            raise ServiceError(f"the service ended with code {code}:\n{_tail(self._log)}")


@contextmanager
def serving(bundle: Path, data_dir: Path, log: Path) -> Iterator[Served]:
    """Serve a bundle on a free port of this machine while the block runs.

    The child process uses its own embedded store and the bundle's own bank, even if environment variables name servers
    for the store or the bank.

    Args:
        bundle: the bundle's folder.
        data_dir: folder of the embedded store.
        log: file for the service's output.

    Raises:
        ServiceError: the service does not start or does not stop cleanly.
    """
    foreign = ("M3TR_", "REDIS_URL", "QDRANT_URL")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(foreign)}
    command = [_program("m3tr-serve"), "--bundle", str(bundle), "--data-dir", str(data_dir), "--port", "0"]
    log.write_text("", "utf-8")
    with log.open("a", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=errors, stdin=subprocess.DEVNULL, text=True, env=environment
        )
    assert process.stdout is not None
    addresses: queue.Queue[str | None] = queue.Queue()
    reader = threading.Thread(target=_read, args=(process.stdout, log, addresses), daemon=True)
    reader.start()
    try:
        try:
            url = addresses.get(timeout=START_S)
        except queue.Empty:
            raise ServiceError(f"the service did not listen within {START_S:g} s:\n{_tail(log)}") from None
        if url is None:
            raise ServiceError(f"the service did not start (code {process.wait()}):\n{_tail(log)}")
        yield Served(process, url, log)
    finally:
        _stop(process, log)
        reader.join()


def _program(name: str) -> str:
    """Return the path of a console script in this interpreter's folder, or on the PATH."""
    beside = Path(sys.executable).with_name(name)
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise ServiceError(f"the command {name} is neither installed beside {sys.executable} nor on the PATH")
    return found


def _read(lines: IO[str], log: Path, addresses: queue.Queue[str | None]) -> None:
    """Copy the service's output to the log. Put the service's address into ``addresses``, and None when the output ends."""
    with lines, log.open("a", encoding="utf-8") as out:
        for line in lines:
            out.write(line)
            if match := _ADDRESS.search(line):
                addresses.put(match[1])
    addresses.put(None)


def _stop(process: subprocess.Popen[str], log: Path) -> None:
    if process.poll() is not None:
        return
    process.terminate()
    try:
        code = process.wait(_STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        raise ServiceError(f"the service did not stop within {_STOP_S:g} s and was killed:\n{_tail(log)}") from None
    if code not in _STOPPED:
        raise ServiceError(f"the service stopped with code {code}:\n{_tail(log)}")


def _tail(log: Path) -> str:
    return "\n".join(log.read_text("utf-8", "replace").splitlines()[-_LOG_LINES:])
