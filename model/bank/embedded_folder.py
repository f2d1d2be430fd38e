"""The folder of an embedded bank. This module locks the folder and checks that it is complete.

The folder holds:

- ``bank.json``: format and dimensions. This file is written last, so its presence shows that the bank was filled
  completely.
- ``lock``: a file that is locked (flock) while the bank is open, so that one process at a time can open the bank.
- ``soiled``: a marker that is present while the engine's files may still hold removed videos.
- ``shard/``: the engine's files. The engine changes them whenever the bank is opened, so they have no stable digest.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from model.errors import BankBusy, BankError

FORMAT: Final = 1
_NEEDS_VACUUM: Final = "soiled"
_BLOCK_BYTES: Final = 1 << 20
_VACUUM_S: Final = 120.0
_GRACE_S: Final = 1.0
"""Time in seconds to wait for a lock if no vacuum (``vacuum.py``) is due. A vacuum that has just finished
holds the lock until its process ends."""
_POLL_S: Final = 0.05


class Lock:
    """An exclusive lock on a bank's folder. The lock is held until ``release`` is called or the process ends."""

    def __init__(self, folder: Path) -> None:
        try:
            self.file = os.open(folder / "lock", os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BankError(f"bank {folder}: cannot be locked: {error}") from error
        try:
            self._take(folder)
        except OSError as error:
            os.close(self.file)
            raise BankBusy(
                f"bank {folder}: already open in this or another process; one process at a time can open an embedded bank"
            ) from error

    def _take(self, folder: Path) -> None:
        start = time.monotonic()
        clean_since = start
        while True:
            try:
                return fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                now = time.monotonic()
                # The process that last closed the bank may have started a vacuum that still runs. The vacuum ends by itself.
                if needs_vacuum(folder):
                    clean_since = now
                if now - clean_since > _GRACE_S or now - start > _VACUUM_S:
                    raise
                time.sleep(_POLL_S)

    def release(self) -> None:
        """Release the lock."""
        os.close(self.file)


def writable(folder: Path) -> bool:
    """Return whether the engine can open a bank in this folder. The engine writes to its files even if the bank is only read."""
    return all(os.access(path, os.W_OK) for path in (folder, *folder.rglob("*")) if not path.is_symlink())


def copy(source: Path, target: Path) -> None:
    """Copy a bank's folder. The bank may be open in another process."""
    # The engine's files are sparse: their size is five times the size of their data. A plain copy would fill the holes.
    if shutil.which("cp"):
        done = subprocess.run(
            ["cp", "-r", "--sparse=always", source, target], capture_output=True, text=True, check=False
        )
        if done.returncode:
            raise BankError(f"bank {source}: cannot be copied to {target}: {done.stderr.strip()}")
    else:
        try:
            shutil.copytree(source, target)
        except OSError as error:
            raise BankError(f"bank {source}: cannot be copied to {target}: {error}") from error
    for path in (target, *target.rglob("*")):
        path.chmod(path.stat().st_mode | 0o600 | (0o100 if path.is_dir() else 0))


def shard_path(folder: Path) -> Path:
    """Return the folder of the engine's files."""
    return folder / "shard"


def read_ahead(folder: Path) -> None:
    """Read all files into the page cache.

    While the engine opens, it holds the GIL and reads the disk page by page. With 20,000 videos, opening takes a
    second. If the files are in the page cache, opening takes less than a tenth of a second.
    """
    block = bytearray(_BLOCK_BYTES)
    for path in shard_path(folder).rglob("*"):
        if path.is_file():
            # Errors are ignored here, because the engine reports unreadable files.
            with suppress(OSError), path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass


def write_back(folder: Path) -> None:
    """Sync all files to disk. The engine holds the GIL while it closes. After this sync, the engine has little left to write."""
    for path in shard_path(folder).rglob("*"):
        if path.is_file():
            with suppress(OSError):
                _sync(path)


def check_complete(folder: Path, content_dim: int, trajectory_dim: int) -> None:
    """Raise BankError if the folder is not a bank, if its fill was not finished, or if it has different dimensions."""
    if not folder.is_dir():
        raise BankError(f"bank {folder}: no such folder")
    try:
        marker = json.loads((folder / "bank.json").read_bytes())
    except FileNotFoundError as error:
        raise BankError(f"bank {folder}: bank.json is missing: the fill did not finish; fill it again") from error
    except ValueError as error:
        raise BankError(f"bank {folder}: bank.json is not JSON: {error}") from error
    expected = _marker(content_dim, trajectory_dim)
    if marker != expected:
        raise BankError(f"bank {folder}: bank.json says {marker}; expected {expected}")


def dims(folder: Path) -> tuple[int, int]:
    """Return the dimensions of the bank's content vectors and trajectory vectors."""
    marker = json.loads((folder / "bank.json").read_bytes())
    return int(marker["content_dim"]), int(marker["trajectory_dim"])


def mark_complete(folder: Path, content_dim: int, trajectory_dim: int) -> None:
    """Durably mark the folder as a completely filled bank."""
    part = folder / "bank.json.part"
    with part.open("w") as file:
        json.dump(_marker(content_dim, trajectory_dim), file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / "bank.json")
    _sync(folder)


def new_folder_beside(folder: Path) -> Path:
    """Create an empty folder beside ``folder`` for a fill. The remains of an unfinished fill are removed. The new folder is not locked.

    If ``folder`` is an open bank, or is not a bank, ``install`` could not replace it later. So this function already
    raises the error.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "bank.json").exists():
            raise BankError(f"bank {folder}: the folder has files but no bank.json, so it is not replaced")
        Lock(folder).release()
    part = folder.with_name(f".{folder.name}.building")
    _remove(part)
    part.mkdir(parents=True)
    return part


def install(part: Path, folder: Path) -> None:
    """Move a filled folder to ``folder``. A bank that is already there is replaced, unless it is open."""
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    if folder.exists():
        lock = Lock(folder)
        folder.rename(old)
        lock.release()
    part.rename(folder)
    _sync(folder.parent)
    _remove(old)


def mark_for_vacuum(folder: Path) -> None:
    """Record that the engine's files need a vacuum. Call this before videos are removed, because the engine keeps their bytes."""
    (folder / _NEEDS_VACUUM).touch()


def needs_vacuum(folder: Path) -> bool:
    """Return whether the engine's files may still hold removed videos."""
    return (folder / _NEEDS_VACUUM).exists()


def mark_vacuumed(folder: Path) -> None:
    """Record that the engine's files no longer hold any removed video."""
    (folder / _NEEDS_VACUUM).unlink(missing_ok=True)


def _marker(content_dim: int, trajectory_dim: int) -> dict[str, int]:
    return {"format": FORMAT, "content_dim": content_dim, "trajectory_dim": trajectory_dim}


def _remove(folder: Path) -> None:
    if folder.exists():
        lock = Lock(folder)
        shutil.rmtree(folder)
        lock.release()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
