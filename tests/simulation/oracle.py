"""The store's semantics in plain Python, for one video at a time and independent of order: what the store must hold."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from model.engagement.bins import EDGES_US, N_BINS
from model.engagement.history import History, Series
from service.store.snapshot import Snapshot
from tests.simulation.plan import PlannedRow

_EDGES = EDGES_US.tolist()
Cells = dict[tuple[int, str], int]
REACH = "reach"


@dataclass(frozen=True)
class Expected:
    """The expected content of a video: ``cells`` by (bin, type), ``modes`` by type, counts by type, time of the newest row."""

    cells: Cells
    modes: dict[str, str]
    totals: dict[str, int]
    newest_us: int | None


def bin_of(age_us: int) -> int:
    return min(bisect_right(_EDGES, age_us) - 1, N_BINS - 1)


def expected(rows: Iterable[PlannedRow], published_us: int) -> Expected:
    """The content that distinct, valid rows give: events add up, counters keep the largest value."""
    cells: Cells = {}
    modes: dict[str, str] = {}
    totals: dict[str, int] = defaultdict(int)
    newest: int | None = None
    for row in rows:
        index = bin_of(row.time_us - published_us)
        newest = row.time_us if newest is None else max(newest, row.time_us)
        for kind, value in row.values:
            modes[kind] = row.mode
            old = cells.get((index, kind))
            if row.mode == "events":
                cells[index, kind] = (old or 0) + value
                totals[kind] += value
            else:
                cells[index, kind] = value if old is None else max(old, value)
                totals[kind] = max(totals[kind], value)
        if row.reach:
            cells[index, REACH] = cells.get((index, REACH), 0) + row.reach
    return Expected(cells, modes, dict(totals), newest)


def observed(snapshot: Snapshot) -> Expected:
    """A snapshot in the oracle's terms."""
    history = snapshot.history
    cells = {
        (index, kind): value
        for kind, series in history.series.items()
        for index, value in zip(series.bins.tolist(), series.values.tolist(), strict=True)
    }
    cells |= {(int(index), REACH): int(value) for index, value in history.reach.items()}
    modes = {kind: str(series.mode) for kind, series in history.series.items()}
    return Expected(cells, modes, history.totals(), snapshot.newest_us)


def outside(found: Cells, at_least: Cells, at_most: Cells) -> list[str]:
    """Cells that lack an acknowledged row, or hold a row that was not sent."""
    return [
        f"{cell}: {found.get(cell)}, not {at_least.get(cell)} to {at_most.get(cell)}"
        for cell in sorted({*found, *at_least})
        if not at_least.get(cell, 0) <= found.get(cell, 0) <= at_most.get(cell, 0)
    ]


def ended_by(history: History, age_us: int) -> History:
    """The part of a history in bins that had ended at an age."""

    def cut(series: Series) -> Series:
        kept = [i for i, index in enumerate(series.bins.tolist()) if _EDGES[index + 1] <= age_us]
        return Series(series.mode, series.bins[kept], series.values[kept])

    reach = {index: value for index, value in history.reach.items() if _EDGES[index + 1] <= age_us}
    return History({kind: cut(series) for kind, series in history.series.items()}, reach)
