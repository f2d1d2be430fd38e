"""Opens a bundle for reading, even while a service uses its bank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from index_builder.bundles.fill_bank import bank_members, fill_bank
from index_builder.datasets.observed import Observed
from index_builder.progress import progress
from index_builder.samples.network_inputs import encode_text
from model.bank import EmbeddedBank, embedded_folder
from model.bundle import BANK, load_bundle
from model.content.minilm import DIM
from model.errors import BankBusy
from model.forecaster import Forecaster
from model.growth.curves import curves


@contextmanager
def open_bundle(bundle: Path) -> Iterator[Forecaster]:
    """Yield a forecaster that uses the bundle and the bundle's own bank. Close the forecaster at the end.

    Only one operating-system process can open an embedded bank. If a service has opened the bank, a copy of the bank is
    opened instead. Copying is safe because a service only reads the bundle's bank.
    """
    with TemporaryDirectory(prefix="m3tr-bank-") as copies:
        try:
            forecaster = Forecaster.load(bundle)
        except BankBusy:
            copy = Path(copies) / BANK
            embedded_folder.copy(bundle / BANK, copy)
            loaded = load_bundle(bundle)
            forecaster = Forecaster(loaded, EmbeddedBank.open(copy, *loaded.dims))
        try:
            yield forecaster
        finally:
            forecaster.close()


@contextmanager
def open_with_growing_bank(bundle: Path, observed: Observed, until_us: int) -> Iterator[Forecaster]:
    """Yield a forecaster that uses the bundle and a temporary copy of its bank, which grows with ``observed``.

    The copy keeps the videos of the bundle's bank. It also gets the videos of ``observed`` that were published after
    training and up to ``until_us``, as a service's bank does. A stored video that ``observed`` knows from its beginning
    gets its newer curve. A search still sees only what was known of each video at the query's ``now``.
    """
    loaded = load_bundle(bundle)
    with TemporaryDirectory(prefix="m3tr-bank-") as copies:
        path = Path(copies) / BANK
        embedded_folder.copy(bundle / BANK, path)
        forecaster = Forecaster(loaded, bank := EmbeddedBank.open(path, *loaded.dims))
        try:
            first = Observed.of(observed.data, loaded.manifest.metric)
            members = _grown(bank, first, until_us, int(loaded.manifest.training["as_of_us"]))
            videos = [observed.data.videos[v] for v in members]
            sentence = np.zeros((len(observed.data.videos), DIM), np.float32)
            with progress("read text", len(videos)) as bar:
                sentence[members] = encode_text(videos, bar.advance)
            with progress("grow bank", len(members)) as bar:
                fill_bank(bank, forecaster, observed, until_us, members, sentence=sentence, advance=bar.advance)
            yield forecaster
        finally:
            forecaster.close()


def _grown(bank: EmbeddedBank, observed: Observed, until_us: int, as_of_us: int) -> NDArray[np.int64]:
    """Return the indices of the videos to add or replace, oldest first."""
    data = observed.data
    members = bank_members(observed, until_us, len(data.videos))
    known = curves(observed.metric, observed.totals, data.published_us, until_us, continuous=observed.continuous)
    stored = bank.past([data.videos[v].video_id for v in members])

    def wanted(v: int) -> bool:
        past = stored.get(data.videos[v].video_id)
        if past is None or not len(past.curve.ages_us):
            return bool(data.published_us[v] > as_of_us)
        return bool(known.lengths[v]) and bool(known.ages_us[v, 0] <= past.curve.ages_us[0])

    return members[[wanted(v) for v in members.tolist()]] if len(members) else members
