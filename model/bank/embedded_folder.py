"""The folder of an embedded bank: its lock, and whether it is complete.

- ``bank.json``: format and dimensions. It is written last: if it is there, the fill was finished.
- ``lock``: held (flock) while the bank is open, so that one process at a time opens it.
- ``soiled``: present while the engine's files may still hold videos that were removed.
- ``shard/``: the engine's files. They change whenever the bank is opened (do not hash them).
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
"""How long to wait for a lock when no vacuum is due. A vacuum that just finished holds the lock until its process ends."""
_POLL_S: Final = 0.05


class Lock:
    """An exclusive lock on a bank's folder. It ends with ``release``, or with the process."""

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
                # The last process may have closed the bank while a vacuum still runs, which ends by itself.
                if needs_vacuum(folder):
                    clean_since = now
                if now - clean_since > _GRACE_S or now - start > _VACUUM_S:
                    raise
                time.sleep(_POLL_S)

    def release(self) -> None:
        """Release the lock."""
        os.close(self.file)


def writable(folder: Path) -> bool:
    """Whether the engine can open a bank here. It writes to its files even if it is only read."""
    return all(os.access(path, os.W_OK) for path in (folder, *folder.rglob("*")) if not path.is_symlink())


def copy(source: Path, target: Path) -> None:
    """Copy a bank's folder, which may be open in another process."""
    # The engine's files are sparse, five times larger than their data; a plain copy would fill the holes.
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
    """Where the engine keeps its files."""
    return folder / "shard"


def read_ahead(folder: Path) -> None:
    """Read all files into the page cache.

    The engine holds the GIL while it opens and reads the disk page by page, which takes a second for 20,000 videos. From the page
    cache it takes less than a tenth of that.
    """
    block = bytearray(_BLOCK_BYTES)
    for path in shard_path(folder).rglob("*"):
        if path.is_file():
            # The engine reports files that cannot be read.
            with suppress(OSError), path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass


def write_back(folder: Path) -> None:
    """Sync all files to disk, so that the engine, which holds the GIL, has little to write when it closes."""
    for path in shard_path(folder).rglob("*"):
        if path.is_file():
            with suppress(OSError):
                _sync(path)


def check_complete(folder: Path, content_dim: int, trajectory_dim: int) -> None:
    """Refuse a folder that is no bank, was not filled to the end, or has other dimensions."""
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
    """Dimensions of the bank's content and trajectory vectors."""
    marker = json.loads((folder / "bank.json").read_bytes())
    return int(marker["content_dim"]), int(marker["trajectory_dim"])


def mark_complete(folder: Path, content_dim: int, trajectory_dim: int) -> None:
    """Mark the folder, durably, as a completely filled bank."""
    part = folder / "bank.json.part"
    with part.open("w") as file:
        json.dump(_marker(content_dim, trajectory_dim), file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / "bank.json")
    _sync(folder)


def new_folder_beside(folder: Path) -> Path:
    """Make an empty folder beside ``folder`` to fill, and remove the remains of an unfinished fill. It is not locked.

    Refuses at once what ``install`` would refuse: to replace a bank that is open, or a folder that is no bank.
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
    """Move a filled folder to ``folder``. A bank already there is replaced, unless it is open."""
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
    """Note that the engine's files need a vacuum. Call it before videos are removed: the engine keeps their bytes."""
    (folder / _NEEDS_VACUUM).touch()


def needs_vacuum(folder: Path) -> bool:
    """Whether the engine's files may still hold videos that were removed."""
    return (folder / _NEEDS_VACUUM).exists()


def mark_vacuumed(folder: Path) -> None:
    """Note that the engine's files hold no removed video any more."""
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
