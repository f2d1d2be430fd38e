"""Shows the progress of a long step: a bar in a terminal, otherwise a plain line every few seconds.

    with progress("train", total=1200) as bar:
        bar.advance(1, note="loss 0.12")

Everything is printed to standard error, so that a command's output contains only its results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

PLAIN_EVERY_S: Final = 5.0
"""Minimum time between two plain lines in seconds."""


class Bar(Protocol):
    """Receives the progress of a running step."""

    def advance(self, steps: float = 1, *, note: str | None = None) -> None:
        """Add finished steps. A new note replaces the previous one."""


@contextmanager
def progress(name: str, total: float | None = None) -> Iterator[Bar]:
    """Show the progress of ``name`` until the block ends. ``total`` is the number of steps, or None if it is unknown."""
    if not sys.stderr.isatty():
        lines = _Lines(name, total)
        yield lines
        lines.finish()
        return
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
    )
    with display:
        yield _RichBar(display, display.add_task(name, total=total, note=""))


class _RichBar:
    def __init__(self, display: Progress, task: TaskID) -> None:
        self._display = display
        self._task = task

    def advance(self, steps: float = 1, *, note: str | None = None) -> None:
        if note is None:
            self._display.update(self._task, advance=steps)
        else:
            self._display.update(self._task, advance=steps, note=note)


class _Lines:
    def __init__(self, name: str, total: float | None) -> None:
        self._name, self._total = name, total
        self._done, self._note = 0.0, ""
        self._start = self._last = time.monotonic()

    def advance(self, steps: float = 1, *, note: str | None = None) -> None:
        self._done += steps
        self._note = self._note if note is None else note
        now = time.monotonic()
        if now - self._last >= PLAIN_EVERY_S:
            self._last = now
            of = "" if self._total is None else f" of {self._total:,.0f}"
            self._print(f"{self._done:,.0f}{of}, {now - self._start:.0f} s")

    def finish(self) -> None:
        self._print(f"done, {self._done:,.0f} in {time.monotonic() - self._start:.1f} s")

    def _print(self, state: str) -> None:
        print(f"{self._name}: {state}{', ' if self._note else ''}{self._note}", file=sys.stderr, flush=True)
