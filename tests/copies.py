"""Copies of bundles and banks that keep the holes of the engine's files.

A small bundle takes 5 MB of disk, but its files have a size of up to 1 GB. ``shutil.copytree`` would fill the holes.
"""

from __future__ import annotations

from pathlib import Path

from model.bank import embedded_folder


def copy_tree(source: Path, target: Path) -> Path:
    """Copy the folder ``source`` to the new folder ``target`` and return ``target``."""
    embedded_folder.copy(source, target)
    return target
