"""Runs the whole workflow on synthetic data (command ``m3tr-build demo``).

    simulate -> train as of day 48 of 60 -> index -> serve -> replay the remaining days -> forecast at cuts

A cut is a point in time. At each cut the replay pauses, and the service forecasts the videos published since the as-of
time of training. Then the replay continues. The real outcomes are read from the data set, which the service never sees.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from index_builder.bundles.index import index
from index_builder.datasets.dataset import DataSet
from index_builder.datasets.load import load_dataset
from index_builder.progress import progress
from index_builder.replay.client import Client, ServiceError, iso8601
from index_builder.replay.replay import Replay
from index_builder.replay.service_process import serving
from index_builder.simulation.simulate import DEFAULT_START_US, simulate
from index_builder.simulation.videos import DAY_US, LIFE_DAYS
from index_builder.training.train import train
from model.engagement.bins import HOUR_US, SECOND_US
from model.errors import DataError

DAYS: Final = 60
AS_OF_US: Final = DEFAULT_START_US + 48 * DAY_US
CUTS_US: Final = tuple(AS_OF_US + round(days * DAY_US) for days in (1.5, 3.25, 5.6))
HORIZONS_S: Final = (24 * 3600, 72 * 3600)
METRIC: Final = "views"
_MARKER: Final = ".m3tr-demo"
_SHOWN: Final = 4
_STEPS: Final = 6
_WIDE: Final = 110
"""Minimum width of a terminal, in characters, for showing titles."""


@dataclass(frozen=True, slots=True)
class Case:
    """One forecast and the real outcome. Counts are cumulative."""

    cut_us: int
    video: int
    age_h: float
    now: float
    horizon_s: int
    low: float
    middle: float
    high: float
    happened: int

    @property
    def inside(self) -> bool:
        """Return whether the real count is inside the 80 % interval. The bounds are rounded to whole counts, as in the printed table."""
        return round(self.low) <= self.happened <= round(self.high)

    @property
    def strictly_inside(self) -> bool:
        """Return whether the real count is inside the interval before rounding, as ``m3tr-build evaluate`` does."""
        return self.low <= self.happened <= self.high


def demo(folder: Path, *, videos: int = 400, seed: int = 7, keep_serving: bool = False) -> None:
    """Run every step and print the comparison. With ``keep_serving``, serve afterwards until interrupted.

    Raises:
        M3TRError: a step failed. The message says why.
    """
    console = Console() if Console().is_terminal else Console(width=120)
    _prepare(folder)
    began = time.perf_counter()
    with _step(console, 1, f"simulate {videos} videos over {DAYS} days (synthetic data)"):
        simulate(folder / "data", videos=videos, seed=seed, days=DAYS)
    with _step(console, 2, f"train on what was known on {iso8601(AS_OF_US)[:10]}"):
        bundle, data_path = folder / "bundle", folder / "data"
        train(
            data_path, as_of_us=AS_OF_US, metric=METRIC, out=bundle, device="auto", epochs=None, seed=seed, config=None
        )
    with _step(console, 3, "index: fill the bank of past videos"):
        index(bundle, data_path, as_of_us=AS_OF_US, qdrant_url=None, bank=None)
    data = load_dataset(data_path)
    with contextlib.ExitStack() as running:
        with _step(console, 4, "serve: m3tr-serve with its embedded store"):
            served = running.enter_context(serving(bundle, folder / "store", folder / "serve.log"))
            client = running.enter_context(Client(served.url))
            console.print(f"      on {served.url}", highlight=False)
        with _step(console, 5, "replay the remaining days as a live stream, with forecasts at three times"):
            cases, summary = _replay_with_forecasts(data, client)
        console.print(f"      {summary}", highlight=False)
        with _step(console, 6, "compare"):
            _report(console, data, cases)
        console.print(f"all steps took {time.perf_counter() - began:.0f} s; all files are in {folder}", highlight=False)
        if keep_serving:
            console.print(
                f"\nserving on {served.url}  (schema {served.url}/docs, metrics {served.url}/metrics); Ctrl-C stops it",
                highlight=False,
            )
            try:
                served.wait()
            except KeyboardInterrupt:
                console.print("stopping")


@contextlib.contextmanager
def _step(console: Console, number: int, name: str) -> Iterator[None]:
    console.print(f"({number}/{_STEPS}) {name}", style="bold", highlight=False)
    start = time.perf_counter()
    yield
    console.print(f"      done in {time.perf_counter() - start:.1f} s", highlight=False)


def _prepare(folder: Path) -> None:
    """Create the folder, or empty it if an earlier demo created it. Refuse any other folder that is not empty."""
    marker = folder / _MARKER
    if folder.exists() and not folder.is_dir():
        raise DataError(f"{folder}: is a file; allowed: a new or empty folder, or the folder of an earlier demo")
    if folder.exists() and any(folder.iterdir()):
        if not marker.exists():
            raise DataError(
                f"{folder}: contains other files; allowed: a new or empty folder, or the folder of an earlier demo"
            )
        for name in ("data", "bundle", "store"):
            shutil.rmtree(folder / name, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    marker.touch()


def _replay_with_forecasts(data: DataSet, client: Client) -> tuple[list[Case], str]:
    """Replay up to each cut and forecast at the cut. Then replay to the end. Return the cases and a summary of what was sent."""
    alive = data.published_us >= AS_OF_US - round(LIFE_DAYS[1] * DAY_US)
    stream = Replay(data, client, videos=alive)
    cases: list[Case] = []
    sent = registered = 0
    spent_s = forecasts_s = 0.0
    with progress("replay", stream.remaining()) as bar:
        for cut_us in (*CUTS_US, None):
            start = time.perf_counter()
            counts = stream.play(cut_us, bar=bar)
            spent_s += time.perf_counter() - start
            sent, registered = sent + counts.sent, registered + counts.videos
            if counts.rejected or counts.duplicate or counts.parked:
                raise ServiceError(f"the service did not accept every row: {counts}")
            if cut_us is not None:
                start = time.perf_counter()
                cases += _forecasts_at(data, client, cut_us)
                forecasts_s += time.perf_counter() - start
    rate = sent / max(spent_s, 1e-9)
    calls = len(cases) // len(HORIZONS_S)
    summary = f"{registered} videos and {sent:,} rows over HTTP at {rate:,.0f} rows/s; "
    return cases, summary + f"{calls} calls for forecasts, {1000 * forecasts_s / max(calls, 1):.1f} ms each"


def _forecasts_at(data: DataSet, client: Client, cut_us: int) -> list[Case]:
    """Return forecasts at a cut for every video published since the as-of time of training."""
    fresh = np.flatnonzero((data.published_us >= AS_OF_US) & (data.published_us <= cut_us))
    targets = [cut_us + horizon_s * SECOND_US for horizon_s in HORIZONS_S]
    now, *later = (_counts(data, time_us) for time_us in (cut_us, *targets))
    cases = []
    for video in fresh:
        response = client.forecast(data.videos[video].video_id, cut_us, HORIZONS_S)
        if response["value_now"] != now[video]:
            raise ServiceError(
                f"video {data.videos[video].video_id} at {iso8601(cut_us)}: the service counts {response['value_now']:g} "
                f"{METRIC}, but the data set's rows give {now[video]}"
            )
        age_h = (cut_us - data.published_us[video]) / HOUR_US
        for made, count in zip(response["forecasts"], later, strict=True):
            low, middle, high = (float(made[name]) for name in ("q0.1", "q0.5", "q0.9"))
            horizon_s, happened = int(made["horizon_s"]), int(count[video])
            cases.append(Case(cut_us, int(video), age_h, float(now[video]), horizon_s, low, middle, high, happened))
    return cases


def _counts(data: DataSet, until_us: int) -> NDArray[np.int64]:
    """Return the views (V,) int64 of each video up to and including a time."""
    events = data.events
    assert events is not None
    chosen = (events.time_us <= until_us) & (events.type == data.types.index("view"))
    return np.bincount(events.video[chosen], events.value[chosen], minlength=len(data.videos)).astype(np.int64)


def _report(console: Console, data: DataSet, cases: list[Case]) -> None:
    """Print a table of a few videos for each cut, and a summary of all forecasts."""
    if not cases:
        raise DataError("videos: too few; no video was published between the training and the cuts; use more videos")
    for cut_us in CUTS_US:
        asked = [case for case in cases if case.cut_us == cut_us]
        known = sorted({case.video for case in asked if case.now > 0}) or sorted({case.video for case in asked})
        shown = {known[round(at)] for at in np.linspace(0, len(known) - 1, _SHOWN)} if known else set()
        title = f"forecast at {iso8601(cut_us)[:16].replace('T', ' ')} UTC, {METRIC} now and later"
        console.print(_table(title, data, [case for case in asked if case.video in shown], console.width >= _WIDE))
    happened = np.log2(1 + np.array([case.happened for case in cases]))
    model = np.abs(np.log2(1 + np.array([case.middle for case in cases])) - happened).mean()
    still = np.abs(np.log2(1 + np.array([case.now for case in cases])) - happened).mean()
    whole, strict = (sum(inside) for inside in zip(*((c.inside, c.strictly_inside) for c in cases), strict=True))
    console.print(
        f"{len(cases)} forecasts: {whole} outcomes were inside the 80 % interval in whole counts ({whole / len(cases):.0%}), "
        f"{strict} before rounding ({strict / len(cases):.0%})\n"
        f"mean error of the median in log2: {model:.2f}; error if no count changed: {still:.2f}",
        highlight=False,
    )


def _table(title: str, data: DataSet, cases: list[Case], with_title: bool) -> Table:
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, pad_edge=False, collapse_padding=True)
    for name in ("video", "title") if with_title else ("video",):
        table.add_column(name, no_wrap=True, max_width=34)
    for name in ("age", "now", "after", "q0.1", "q0.5", "q0.9", "happened", "inside"):
        table.add_column(name, justify="right", no_wrap=True)
    for case in cases:
        video = data.videos[case.video]
        table.add_row(
            *(video.video_id, video.title) if with_title else (video.video_id,),
            f"{case.age_h:.1f} h",
            f"{case.now:,.0f}",
            f"{case.horizon_s // 3600} h",
            *(f"{round(quantile):,}" for quantile in (case.low, case.middle, case.high)),
            f"{case.happened:,}",
            "[green]yes[/]" if case.inside else "[red]no[/]",
        )
    return table
