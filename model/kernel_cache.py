"""Chooses the folder in which numba caches compiled kernels.

numba chooses its folder when a kernel is defined, and fails if it finds no writable folder. So ``model/__init__.py``
calls ``choose`` before any kernel is defined. ``choose`` uses the first writable folder of this list:

    NUMBA_CACHE_DIR                  if it is set
    beside the source                if NUMBA_CACHE_DIR is not set
    $XDG_CACHE_HOME or ~/.cache      subfolder m3tr/kernels
    the temporary folder             subfolder m3tr-kernels-UID
    /dev/shm                         subfolder m3tr-kernels-UID

The source folder is often read-only, or it belongs to a different user. If a folder other than the source folder is
chosen, the kernels that were compiled at install (``model.warmup``) are copied to the chosen folder. So these kernels
are not compiled again at the start. If no folder is writable, the kernels are compiled at every start.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

VARIABLE: Final = "NUMBA_CACHE_DIR"
_ROOT: Final = Path(__file__).parent.parent
_PACKAGES: Final = (
    "model",
    "model/bank",
    "model/engagement",
    "model/features",
    "model/growth",
    "model/mhp",
    "model/mhp/backends",
    "index_builder/baselines",
    "index_builder/evaluation",
    "index_builder/neighbours",
    "index_builder/samples",
)
"""Folders with kernels."""
_COMPILED: Final = ("*.nbi", "*.nbc")

log = logging.getLogger(__name__)


def choose() -> Path | None:
    """Choose a cache folder, so that kernels can be defined.

    Return the folder. Return None if numba caches beside the source, or not at all.
    """
    given = os.environ.get(VARIABLE)
    if given:
        if _usable(Path(given)):
            _seed(Path(given))
            return Path(given)
        log.warning("%s: %r cannot be written; allowed: a writable folder", VARIABLE, given)
    elif all(_writable(_ROOT / package / "__pycache__") for package in _PACKAGES if (_ROOT / package).is_dir()):
        return None
    for folder in _folders():
        if _usable(folder):
            os.environ[VARIABLE] = str(folder)
            _set_numba_folder(str(folder))
            _seed(folder)
            return folder
    os.environ.pop(VARIABLE, None)
    _set_numba_folder("")
    _disable_cache()
    return None


def _folders() -> Iterator[Path]:
    cache = os.environ.get("XDG_CACHE_HOME")
    with suppress(RuntimeError):
        yield (Path(cache) if cache else Path.home() / ".cache") / "m3tr" / "kernels"
    with suppress(FileNotFoundError):
        yield Path(tempfile.gettempdir()) / f"m3tr-kernels-{os.getuid()}"
    yield Path("/dev/shm") / f"m3tr-kernels-{os.getuid()}"


def _usable(folder: Path) -> bool:
    """Return whether the folder can be used: it exists or can be created, and it is writable and safe.

    Code is loaded from the folder, so other users must not be able to write to it. If its parent folder is shared,
    the folder must belong to this user.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
        if folder.parent.stat().st_mode & stat.S_IWOTH and (found.st_uid != os.getuid() or folder.is_symlink()):
            return False
        return not (found.st_mode & stat.S_IWOTH) and _writable(folder)
    except OSError:
        return False


def _writable(folder: Path) -> bool:
    """Return whether a file can be created in the folder. If the folder is missing, it is created."""
    try:
        folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _seed(target: Path) -> None:
    """Copy the kernels that were compiled beside the source. numba ignores kernels of a different source version or processor."""
    for package in _PACKAGES:
        source = _ROOT / package
        # This is the name that numba gives to the folder of a module's kernels.
        folder = target / f"{source.name}_{hashlib.sha1(str(source).encode()).hexdigest()}"
        for path in [path for kind in _COMPILED for path in (source / "__pycache__").glob(kind)]:
            with suppress(OSError):
                if not (folder / path.name).exists():
                    folder.mkdir(exist_ok=True)
                    part = folder / f".{path.name}.{os.getpid()}"
                    shutil.copy(path, part)
                    part.rename(folder / path.name)


def _set_numba_folder(folder: str) -> None:
    """Set numba's folder directly. This is needed if numba was imported earlier and has already read its environment."""
    if "numba" in sys.modules:
        sys.modules["numba"].config.CACHE_DIR = folder


def _disable_cache() -> None:
    """Make numba compile at every start. numba has no setting for this, so a method is replaced."""
    log.warning(
        "no folder for compiled kernels is writable, so they are compiled at every start, which takes a minute; "
        "set %s to a writable folder",
        VARIABLE,
    )
    from numba.core.dispatcher import Dispatcher

    Dispatcher.enable_caching = lambda self: None  # type: ignore[method-assign]
