"""Timeouts that follow the CPU time a test could have had, so that a busy machine fails no test.

While n threads of the machine want to run on c cores, a test gets about c / n of a core's time. So each second of wall time
counts as c / n seconds here, and as one second on a quiet machine.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import pytest

LOADAVG = Path("/proc/loadavg")
_STEP_S = 0.5


def slowdown(loadavg: Path = LOADAVG, cores: int = os.cpu_count() or 1) -> float:
    """Threads that want to run now or did on average of the last minute, for each core; at least 1."""
    try:
        fields = loadavg.read_text().split()
    except OSError:
        return 1.0
    return max(1.0, float(fields[0]) / cores, int(fields[3].partition("/")[0]) / cores)


class Patience:
    """A limit in seconds of a quiet machine. Poll ``over`` often: each poll adds the time since the last one."""

    def __init__(
        self, seconds: float, clock: Callable[[], float] = time.monotonic, slowed: Callable[[], float] = slowdown
    ) -> None:
        self._left, self._clock, self._slowed = seconds, clock, slowed
        self._last = clock()

    def over(self) -> bool:
        """Whether the limit has passed."""
        now = self._clock()
        self._left -= (now - self._last) / self._slowed()
        self._last = now
        return self._left <= 0


def run(command: Sequence[Any], *, seconds: float, check: bool = False, **options: Any) -> Any:
    """``subprocess.run`` with such a limit; the process is killed when it has passed."""
    if options.pop("capture_output", False):
        options |= {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    given = options.pop("input", None)
    if given is not None:
        options["stdin"] = subprocess.PIPE
    patience = Patience(seconds)
    with subprocess.Popen(command, **options) as process:
        while True:
            try:
                output, errors = process.communicate(given, timeout=_STEP_S)
                break
            except subprocess.TimeoutExpired:
                if patience.over():
                    process.kill()
                    output, errors = process.communicate()
                    raise subprocess.TimeoutExpired(command, seconds, output, errors) from None
    done = subprocess.CompletedProcess(command, process.returncode, output, errors)
    if check:
        done.check_returncode()
    return done


class Watchdog:
    """Ends the test that it is wrapped around when its limit has passed: by an error in the main thread, then by force.

    All threads' stacks are printed first.
    """

    def __init__(self, name: str, seconds: float, show_output: Callable[[], None], grace_s: float = 60) -> None:
        self._name, self._seconds, self._show_output, self._grace_s = name, seconds, show_output, grace_s
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = signal.signal(signal.SIGALRM, self._fail)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        signal.signal(signal.SIGALRM, self._before)

    def _watch(self) -> None:
        for seconds, act in ((self._seconds, self._interrupt), (self._grace_s, self._end)):
            patience = Patience(seconds)
            while not patience.over():
                if self._done.wait(_STEP_S):
                    return
            act()

    def _interrupt(self) -> None:
        print(f"\n{self._name}: more than {self._seconds:g} s; the stacks of all threads:", file=sys.__stderr__)
        with suppress(ValueError, OSError):
            faulthandler.dump_traceback(file=2)
        main = threading.main_thread().ident
        assert main is not None
        signal.pthread_kill(main, signal.SIGALRM)

    def _end(self) -> None:
        self._show_output()
        print(f"\n{self._name}: does not end; the test run is ended", file=sys.__stderr__, flush=True)
        os._exit(3)

    def _fail(self, number: int, frame: FrameType | None) -> None:
        pytest.fail(f"more than {self._seconds:g} s of a quiet machine's time")
