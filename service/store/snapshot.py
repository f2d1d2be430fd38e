"""A video as the store holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.history import History, Mode, Series
from model.video import Video

REACH: Final = "reach"
"""Stands where a type would, for the audience of each bin."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a video; ``newest_us`` is the time of its newest accepted row, None before the first."""

    version: int
    video: Video
    history: History
    newest_us: int | None


_FIELDS: Final = frozenset(Video.__dataclass_fields__) - {"video_id", "published_us"}
_MODES: Final[dict[int, Mode]] = {1: "events", 2: "counters"}


def parse_snapshot(video_id: str, reply: Sequence[Any]) -> Snapshot:
    """Read a full reply of the store's ``read`` function: version, meta, metadata, (type, cells) pairs."""
    published_us, _, version, newest_us, _, _, *types = msgspec.msgpack.decode(reply[1])
    blocks: dict[str, list[bytes]] = {}
    for kind, flat in zip(reply[3][::2], reply[3][1::2], strict=True):
        blocks.setdefault(kind.decode(), []).extend(flat)
    cells = {kind: _cells(flat) for kind, flat in blocks.items()}
    reach = cells.pop(REACH, None)
    series = {}
    for kind, mode in zip(types[::6], types[1::6], strict=True):
        if mode in _MODES:
            by_bin = cells[kind]
            series[kind] = Series(_MODES[mode], by_bin[:, 0].copy(), by_bin[:, 1].copy())
    return Snapshot(
        version=version,
        video=Video(video_id=video_id, published_us=published_us, **_known(msgspec.json.decode(reply[2]))),
        history=History(series, {} if reach is None else dict(reach.tolist())),
        newest_us=newest_us if newest_us >= 0 else None,
    )


def _known(metadata: dict[str, Any]) -> dict[str, Any]:
    # A newer replica may have stored fields that this one does not know.
    return {name: value for name, value in metadata.items() if name in _FIELDS}


def _cells(flat: list[bytes]) -> NDArray[np.int64]:
    """(bin, value) rows in the order of bins, (n, 2) int64."""
    cells = np.array(list(map(int, flat)), np.int64).reshape(-1, 2)
    ordered: NDArray[np.int64] = cells[np.argsort(cells[:, 0])]
    return ordered
