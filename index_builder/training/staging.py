"""Where a bundle is made: a folder beside its place, which outlives a kill and is gone after success.

.NAME.training/
    lock                   held while a training runs; another one for the same place is refused
    stage-N.safetensors    checkpoints
    bundle/                the bundle being written, moved to its place when it is whole
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import DataError


def staging_path(out: Path) -> Path:
    """The folder in which the bundle ``out`` is made."""
    return out.parent / f".{out.name}.training"


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """A folder to write the bundle in; it is moved to ``out`` when the block ends well. Checkpoints may lie beside it.

    Raises:
        DataError: another process makes the same bundle.
    """
    place = staging_path(out)
    place.mkdir(parents=True, exist_ok=True)
    bundle = place / "bundle"
    with (place / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"out: {str(out)!r} is being made by another training; allowed: a new folder") from None
        try:
            shutil.rmtree(bundle, ignore_errors=True)
            bundle.mkdir()
            yield bundle
            if out.exists():
                out.rmdir()
            bundle.rename(out)
            shutil.rmtree(place)
        except BaseException:
            shutil.rmtree(bundle, ignore_errors=True)
            if not any(place.glob("stage-*")):
                shutil.rmtree(place, ignore_errors=True)
            raise
