"""The folder of an embedded bank: who may open it, and whether it is complete.

- ``bank.json``: written last, so its presence says that the fill was finished; holds format and dimensions.
- ``lock``: held (flock) while the bank is open: one opener, one process.
- ``soiled``: there while the engine's log may hold videos that were removed.
- ``shard/``: the engine's files, which change with every opening (do not hash them).
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
_SOILED: Final = "soiled"
_BLOCK: Final = 1 << 20
_VACUUM_S: Final = 120.0
_GRACE_S: Final = 1.0
"""How long a lock is waited for that no vacuum holds: one that just ended still has its process to end."""
_POLL_S: Final = 0.05


class Lock:
    """An exclusive hold on a bank's folder, released by ``release`` or with the process."""

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
                f"bank {folder}: already open, here or in another process; an embedded bank has one opener"
            ) from error

    def _take(self, folder: Path) -> None:
        start = time.monotonic()
        clean_since = start
        while True:
            try:
                return fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                now = time.monotonic()
                # Who closed it may have left it to a vacuum, which ends by itself.
                if is_soiled(folder):
                    clean_since = now
                if now - clean_since > _GRACE_S or now - start > _VACUUM_S:
                    raise
                time.sleep(_POLL_S)

    def release(self) -> None:
        """Give the folder up."""
        os.close(self.file)


def writable(folder: Path) -> bool:
    """Whether the engine, which writes also when it only reads, can open a bank here."""
    return all(os.access(path, os.W_OK) for path in (folder, *folder.rglob("*")) if not path.is_symlink())


def copy(source: Path, target: Path) -> None:
    """Copy a bank's folder, which may be open: the engine only reads what is there."""
    # The engine's files are sparse, five times larger than what they hold; a plain copy would fill the holes.
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
    """Bring all files into the page cache.

    The engine keeps the GIL while it opens, and waits for the disk page by page, a second for 20,000 videos; for what is in the
    cache it takes less than a tenth of that.
    """
    block = bytearray(_BLOCK)
    for path in shard_path(folder).rglob("*"):
        if path.is_file():
            # What cannot be read is told by the engine.
            with suppress(OSError), path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass


def write_back(folder: Path) -> None:
    """Make what is written so far durable, so that the engine, which keeps the GIL, finds little to do when it closes."""
    for path in shard_path(folder).rglob("*"):
        if path.is_file():
            with suppress(OSError):
                _sync(path)


def check_complete(folder: Path, content_dim: int, trajectory_dim: int) -> None:
    """Refuse a folder that is no bank, is not completely filled, or has other dimensions."""
    if not folder.is_dir():
        raise BankError(f"bank {folder}: no such folder")
    try:
        marker = json.loads((folder / "bank.json").read_bytes())
    except FileNotFoundError as error:
        raise BankError(f"bank {folder}: bank.json is missing: its fill was never finished; fill it again") from error
    except ValueError as error:
        raise BankError(f"bank {folder}: bank.json is not JSON: {error}") from error
    expected = _marker(content_dim, trajectory_dim)
    if marker != expected:
        raise BankError(f"bank {folder}: bank.json says {marker}, needed is {expected}")


def dims(folder: Path) -> tuple[int, int]:
    """Dimensions of content and of trajectories that the bank was made with."""
    marker = json.loads((folder / "bank.json").read_bytes())
    return int(marker["content_dim"]), int(marker["trajectory_dim"])


def mark_complete(folder: Path, content_dim: int, trajectory_dim: int) -> None:
    """Say, durably, that the folder holds a whole bank."""
    part = folder / "bank.json.part"
    with part.open("w") as file:
        json.dump(_marker(content_dim, trajectory_dim), file)
        file.flush()
        os.fsync(file.fileno())
    part.rename(folder / "bank.json")
    _sync(folder)


def building(folder: Path) -> Path:
    """An empty folder beside ``folder`` to fill, the remains of an unfinished fill removed. Not locked.

    Refuses at once what ``install`` would refuse: to replace a bank that is open, or a folder that is no bank.
    """
    if folder.exists() and any(folder.iterdir()):
        if not (folder / "bank.json").exists():
            raise BankError(f"bank {folder}: the folder has other files and no bank.json, and will not be replaced")
        Lock(folder).release()
    part = folder.with_name(f".{folder.name}.building")
    _remove(part)
    part.mkdir(parents=True)
    return part


def install(part: Path, folder: Path) -> None:
    """Put a filled folder in its place. A bank already there is replaced; one that is open is refused."""
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    if folder.exists():
        hold = Lock(folder)
        folder.rename(old)
        hold.release()
    part.rename(folder)
    _sync(folder.parent)
    _remove(old)


def soil(folder: Path) -> None:
    """Note, before it happens, that something is removed: the log keeps it."""
    (folder / _SOILED).touch()


def is_soiled(folder: Path) -> bool:
    """Whether the log may hold something that was removed."""
    return (folder / _SOILED).exists()


def clean(folder: Path) -> None:
    """The log is gone."""
    (folder / _SOILED).unlink(missing_ok=True)


def _marker(content_dim: int, trajectory_dim: int) -> dict[str, int]:
    return {"format": FORMAT, "content_dim": content_dim, "trajectory_dim": trajectory_dim}


def _remove(folder: Path) -> None:
    if folder.exists():
        hold = Lock(folder)
        shutil.rmtree(folder)
        hold.release()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
