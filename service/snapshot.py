"""A video as the store holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import msgspec

from model.history import History, Mode
from model.video import Video


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a video; ``newest_us`` is the time of its newest accepted row, None before the first."""

    version: int
    video: Video
    history: History
    newest_us: int | None


def _fields(flat: Sequence[bytes]) -> dict[str, bytes]:
    return {flat[i].decode(): flat[i + 1] for i in range(0, len(flat), 2)}


def parse_snapshot(video_id: str, reply: Sequence[Any]) -> Snapshot:
    """Read a full reply of the store's ``read`` function: version, meta pairs, bin pairs."""
    meta = _fields(reply[1])
    modes = {name[5:]: cast(Mode, value.decode()) for name, value in meta.items() if name.startswith("mode:")}
    cells: list[tuple[int, str, int]] = []
    reach: dict[int, int] = {}
    for name, value in _fields(reply[2]).items():
        index, kind = name.split(":", 1)
        if kind == "reach":
            reach[int(index)] = int(value)
        else:
            cells.append((int(index), kind, int(value)))
    return Snapshot(
        version=int(reply[0]),
        video=Video(video_id=video_id, published_us=int(meta["published_us"]), **msgspec.json.decode(meta["metadata"])),
        history=History.from_cells(modes, cells, reach),
        newest_us=int(meta["newest_us"]) if "newest_us" in meta else None,
    )
