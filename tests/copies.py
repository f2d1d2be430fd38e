"""Copies of folders that keep the holes of sparse files.

A bundle's embedded bank takes 20 MB of disk, but its files have holes and a size of 1 GB. ``shutil.copytree`` alone
fills the holes.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any


def copy_tree(source: Path, target: Path, ignore: Callable[[Any, list[str]], Iterable[str]] | None = None) -> Path:
    """Copy the folder ``source`` to the new folder ``target`` and return ``target``."""
    return Path(shutil.copytree(source, target, ignore=ignore, copy_function=copy_file))


def copy_file(source: str, target: str) -> None:
    """Copy a file's data, mode and times. Holes stay holes."""
    with open(source, "rb", buffering=0) as read, open(target, "wb", buffering=0) as write:
        size, end = os.fstat(read.fileno()).st_size, 0
        while (start := _next_data(read.fileno(), end)) is not None:
            end = os.lseek(read.fileno(), start, os.SEEK_HOLE)
            while start < end:
                start += os.copy_file_range(read.fileno(), write.fileno(), end - start, start, start)
        write.truncate(size)
    shutil.copystat(source, target)


def _next_data(file: int, offset: int) -> int | None:
    try:
        return os.lseek(file, offset, os.SEEK_DATA)
    except OSError as error:
        # No data after this offset.
        if error.errno == errno.ENXIO:
            return None
        raise
