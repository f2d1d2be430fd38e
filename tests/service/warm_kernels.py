"""A process that warms a model up, asks much of it, and fails where anything was compiled meanwhile.

python -m tests.service.warm_kernels BUNDLE DATA NOW_US
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from numba.core.dispatcher import Dispatcher

from index_builder.dataset import DataSet, load_dataset
from model.bins import HOUR_US, bin_index
from model.forecaster import Request
from model.history import History, Mode, Series
from model.video import Video
from service.bank.maturing import bank_entries
from service.context import new_metrics
from service.models.loading import load_model
from service.models.warmup import warm_first
from service.settings import Settings
from service.store.snapshot import Snapshot


def compiled() -> dict[str, int]:
    """How many variants each kernel of the model has in this process."""
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("model.")]
    found = [value for module in modules for value in vars(module).values() if isinstance(value, Dispatcher)]
    return {it.py_func.__qualname__: len(it.overloads) for it in found}


def asked_of(data: DataSet, now_us: int) -> tuple[list[Request], list[Snapshot]]:
    rng = np.random.default_rng(1)
    modes: tuple[Mode, Mode] = ("events", "counters")
    asked, known = [], []
    for video in data.videos[:60]:
        at_us = max(now_us, video.published_us + HOUR_US)
        bins = np.unique(bin_index(np.sort(rng.integers(0, at_us - video.published_us, 40))))
        mode = modes[int(rng.integers(2))]
        series = {kind: Series(mode, bins, np.arange(1, len(bins) + 1)) for kind in data.types}
        history = History(series, {int(bins[0]): 9})
        others = (Video("new", video.published_us, creator_id="nobody"), Video("bare", video.published_us))
        asked += [
            Request(one, told, at_us, (1, HOUR_US)) for one in (video, *others) for told in (history, History({}))
        ]
        known.append(Snapshot(1, video, history, at_us))
    return asked, known


def main(bundle: Path, data: Path, now_us: int) -> None:
    settings = Settings(bundle=bundle)
    deployment = load_model(settings, new_metrics(settings))
    warm_first(deployment, settings)
    before = compiled()
    assert sum(before.values()) >= 10, before
    forecaster = deployment.forecaster
    asked, known = asked_of(load_dataset(data), now_us)
    neighbours = 0
    for start in range(0, len(asked), 24):
        made = forecaster.forecast(asked[start : start + 24], pool=deployment.pool)
        neighbours += sum(len(forecast.neighbours) for forecast in made)
    assert neighbours, "nobody asked for the kernels of neighbours"
    for request in asked[:8]:
        forecaster.forecast([request])
    content = forecaster.content([snapshot.video for snapshot in known])
    entries = bank_entries(forecaster, known, content, now_us + 90 * 24 * HOUR_US)
    deployment.bank.upsert(entries[:3])
    forecaster.forecast(asked[:8])
    deployment.close()
    late = {name: n for name, n in compiled().items() if n != before.get(name)}
    assert not late, late


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
