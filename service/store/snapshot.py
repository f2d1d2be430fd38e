"""A video as the store holds it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final, get_type_hints

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import N_BINS
from model.engagement.history import History, Mode, Series
from model.engagement.types import REACH
from model.engagement.video import Video
from service.store.quarantine import Damaged


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a video; ``newest_us`` is the time of its newest accepted row, None before the first.

    ``registered_us`` is when it was registered first, by the store's clock.
    """

    version: int
    video: Video
    history: History
    newest_us: int | None
    registered_us: int = 0
    client: str = ""
    """Name of the API key that registered it first; "" where that was without one."""


_MODES: Final[dict[int, Mode]] = {1: "events", 2: "counters"}
_OWN: Final = ("video_id", "published_us")
# A newer replica may have stored fields that this one does not know: they are passed over.
_CLIENT: Final = "registered_by"
_Metadata: Final[Any] = msgspec.defstruct(
    "_Metadata",
    [(_CLIENT, str, "")] + [(f.name, get_type_hints(Video)[f.name], None) for f in fields(Video) if f.name not in _OWN],
)
_metadata: Final = msgspec.json.Decoder(_Metadata)


def signed(metadata: str, client: str) -> str:
    """Metadata (canonical JSON) with the key's name at its end, where the store looks for it; "" adds nothing."""
    if not client:
        return metadata
    return f'{metadata[:-1]}{"," if len(metadata) > 2 else ""}"{_CLIENT}":"{client}"}}'


def parse_snapshot(video_id: str, reply: Sequence[Any]) -> Snapshot | Damaged:
    """Read a full reply of the store's ``read`` function: version, meta, metadata, (type, cells) pairs."""
    if reply[0] == b"damaged":
        return Damaged(video_id, reply[1].decode("utf-8", "replace").removeprefix("damaged: "))
    try:
        return _parse(video_id, reply)
    # Whatever is wrong with one record is told as that, and disturbs no other.
    except Exception as error:
        return Damaged(video_id, str(error) or type(error).__name__)


def _parse(video_id: str, reply: Sequence[Any]) -> Snapshot:
    published_us, registered_us, version, newest_us, _, _, *types = msgspec.msgpack.decode(reply[1])
    blocks: dict[str, list[bytes]] = {}
    for kind, flat in zip(reply[3][::2], reply[3][1::2], strict=True):
        blocks.setdefault(kind.decode(), []).extend(flat)
    series: dict[str, Series] = {}
    reach: dict[int, int] = {}
    for kind, mode, total in zip(types[::6], types[1::6], types[2::6], strict=True):
        if mode not in _MODES and kind != REACH:
            continue
        by_bin = _cells(kind, blocks.get(kind, []))
        values = by_bin[:, 1]
        found = int(values.max() if mode == 2 else values.sum()) if len(values) else 0
        if found != total:
            raise ValueError(f"the bins of {kind} hold {found}, and meta says {total:.0f}")
        if kind == REACH:
            reach = dict(by_bin.tolist())
        else:
            series[kind] = Series(_MODES[mode], by_bin[:, 0].copy(), values.copy())
    client, *metadata = msgspec.structs.astuple(_metadata.decode(reply[2]))
    return Snapshot(
        version=version,
        video=Video(video_id, published_us, *metadata),
        history=History(series, reach),
        newest_us=newest_us if newest_us >= 0 else None,
        registered_us=int(registered_us),
        client=client,
    )


def _cells(kind: str, flat: list[bytes]) -> NDArray[np.int64]:
    """(bin, value) rows in the order of bins, (n, 2) int64."""
    cells = np.array(list(map(int, flat)), np.int64).reshape(-1, 2)
    ordered: NDArray[np.int64] = cells[np.argsort(cells[:, 0])]
    if len(ordered) and (ordered[0, 0] < 0 or ordered[-1, 0] >= N_BINS or ordered[:, 1].min() < 0):
        raise ValueError(f"the bins of {kind} are not 0 .. {N_BINS - 1} with whole numbers from 0 on")
    return ordered
