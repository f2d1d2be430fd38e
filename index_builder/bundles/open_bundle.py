"""Opens a bundle for reading, even while a service uses its bank."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from index_builder.bundles.fill_bank import bank_members, fill_bank
from index_builder.datasets.observed import Observed
from index_builder.progress import progress
from index_builder.samples.network_inputs import encode_text
from model.bank import EmbeddedBank, EmptyBank, embedded_folder
from model.bundle import BANK, load_bundle
from model.content.minilm import DIM
from model.errors import BankBusy
from model.forecaster import Forecaster


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
            dims = int(loaded.weights["content_dim"][0]), loaded.manifest.shape.d_model
            forecaster = Forecaster(loaded, EmbeddedBank.open(copy, *dims))
        try:
            yield forecaster
        finally:
            forecaster.close()


@contextmanager
def open_with_growing_bank(bundle: Path, observed: Observed, until_us: int) -> Iterator[Forecaster]:
    """Yield a forecaster that uses the bundle and a temporary bank.

    The temporary bank also contains the videos of ``observed`` that were published up to ``until_us``. A service's
    bank grows in the same way. A search still sees only what was known of each video at the query's ``now``.
    """
    loaded = load_bundle(bundle)
    forecaster = Forecaster(loaded, EmptyBank())
    dims = int(loaded.weights["content_dim"][0]), loaded.manifest.shape.d_model
    new = bank_members(observed, until_us, len(observed.data.videos))
    limit = int(loaded.manifest.training["settings"]["bank_videos"])
    limit += int((observed.data.published_us[new] > loaded.manifest.training["as_of_us"]).sum())
    members = bank_members(observed, until_us, limit)
    videos = [observed.data.videos[v] for v in members]
    sentence = np.zeros((len(observed.data.videos), DIM), np.float32)
    with progress("read text", len(videos)) as bar:
        sentence[members] = encode_text(videos, bar.advance)
    with TemporaryDirectory(prefix="m3tr-bank-") as copies:
        path = Path(copies) / BANK
        with progress("fill bank", len(members)) as bar, EmbeddedBank.build(path, *dims) as bank:
            fill_bank(bank, forecaster, observed, until_us, limit=limit, sentence=sentence, advance=bar.advance)
        forecaster.bank = EmbeddedBank.open(path, *dims)
        try:
            yield forecaster
        finally:
            forecaster.close()
