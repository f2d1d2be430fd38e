"""Programs run as a test's own children, always ended with it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from tests.patience import Patience


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def tool(name: str) -> str:
    """Path of a program that not every machine has: without it a test is skipped, and fails in CI."""
    path = shutil.which(name)
    if path is None:
        reason = f"{name} is not installed"
        pytest.fail(reason) if os.environ.get("CI") == "true" else pytest.skip(reason)
    return path


def wait_for(ready: Callable[[], bool], timeout_s: float = 30) -> bool:
    """Poll until ``ready``, or until so many seconds of a quiet machine have passed; whether it got ready."""
    patience = Patience(timeout_s)
    while not patience.over():
        if ready():
            return True
        time.sleep(0.1)
    return ready()


def answers(url: str) -> bool:
    """Whether a GET is answered with 200."""
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@contextlib.contextmanager
def running(
    command: Sequence[str | Path], log: Path, *, cwd: Path, env: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``command`` with its output in ``log``; SIGTERM at the end, SIGKILL if that does not help."""
    with log.open("wb") as output, subprocess.Popen(command, cwd=cwd, env=env, stdout=output, stderr=output) as process:
        try:
            yield process
        finally:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
