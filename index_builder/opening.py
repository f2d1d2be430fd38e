"""Opening a bundle for reading, also while a service holds its bank."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from model.bank import EdgeBank
from model.bundle import BANK, load_bundle
from model.errors import BankBusy
from model.forecaster import Forecaster


@contextmanager
def opened(bundle: Path) -> Iterator[Forecaster]:
    """A forecaster on the bundle and its own bank, closed at the end.

    An embedded bank has one opener. If a service has it open, a copy is read: a service only reads its bank.
    """
    with TemporaryDirectory(prefix="m3tr-bank-") as folder:
        try:
            forecaster = Forecaster.load(bundle)
        except BankBusy:
            copy = Path(folder) / BANK
            _copy(bundle / BANK, copy)
            loaded = load_bundle(bundle)
            dims = int(loaded.weights["content_dim"][0]), loaded.manifest.shape.d_model
            forecaster = Forecaster(loaded, EdgeBank.open(copy, *dims))
        try:
            yield forecaster
        finally:
            forecaster.close()


def _copy(source: Path, target: Path) -> None:
    # The engine's files are sparse, five times larger than what they hold; a plain copy would fill the holes.
    if shutil.which("cp"):
        subprocess.run(["cp", "-r", "--sparse=always", source, target], check=True)
    else:
        shutil.copytree(source, target)
