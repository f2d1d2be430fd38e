"""The staging folder, where a bundle is written. The folder is beside the bundle's destination.

The staging folder remains if the training run is killed. The folder is removed after success.

.NAME.training/
    lock                   locked while a run is training. A second run with the same destination is refused.
    stage-N.safetensors    checkpoints.
    bundle/                the bundle being written. The complete bundle is moved to its destination.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from model.errors import DataError


def staging_path(out: Path) -> Path:
    """Return the staging folder of the bundle ``out``."""
    return out.parent / f".{out.name}.training"


@contextmanager
def staging_folder(out: Path) -> Iterator[Path]:
    """Yield a folder to write the bundle to. When the block succeeds, move this folder to ``out``.

    Checkpoints may be kept beside the yielded folder.

    Raises:
        DataError: another process is writing the same bundle.
    """
    staging = staging_path(out)
    staging.mkdir(parents=True, exist_ok=True)
    bundle = staging / "bundle"
    with (staging / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DataError(f"out: another training is writing {str(out)!r}; allowed: a new folder") from None
        try:
            shutil.rmtree(bundle, ignore_errors=True)
            bundle.mkdir()
            yield bundle
            if out.exists():
                out.rmdir()
            bundle.rename(out)
            shutil.rmtree(staging)
        except BaseException:
            shutil.rmtree(bundle, ignore_errors=True)
            if not any(staging.glob("stage-*")):
                shutil.rmtree(staging, ignore_errors=True)
            raise
