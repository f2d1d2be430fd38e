"""A snapshot: one version of a video, as it is in the store."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from model.engagement.bins import N_BINS
from model.engagement.history import History, Readings, Series
from model.engagement.types import REACH, SIGNALS
from model.engagement.video import METADATA, Video
from service.store.quarantine import Damaged
from service.store.record_meta import CUMULATIVE, MODES, parse_meta
from service.store.replies import Record


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One version of a video.

    ``newest_us``: the time of the video's newest accepted row, or None before the first row.
    ``registered_us``: the time of the video's first registration, by the store's clock.
    """

    version: int
    video: Video
    history: History
    newest_us: int | None
    registered_us: int = 0
    client: str = ""
    """Name of the API key that first registered the video, or "" if it was registered without a key."""


_CLIENT: Final = "registered_by"
_STORED: Final[dict[str, Any]] = {"text": str, "number": float, "attributes": dict[str, bool | float | str | list[str]]}
"""Type of each kind of metadata in the stored JSON."""
# A newer replica may have stored fields that this replica does not know. Unknown fields are ignored.
_Metadata: Final[Any] = msgspec.defstruct(
    "_Metadata",
    [
        (_CLIENT, str, ""),
        *((declared.name, _STORED[declared.kind] | None, None) for declared in METADATA),
    ],
)
_metadata: Final = msgspec.json.Decoder(_Metadata)


def signed(metadata: str, client: str) -> str:
    """Append the API key's name ``client`` to ``metadata``, which is canonical JSON. The Lua functions expect it at the end.

    If ``client`` is empty, return ``metadata`` unchanged.
    """
    if not client:
        return metadata
    return f'{metadata[:-1]}{"," if len(metadata) > 2 else ""}"{_CLIENT}":"{client}"}}'


def parse_snapshot(video_id: str, record: Record) -> Snapshot | Damaged:
    """Parse a record into a snapshot. Return Damaged, with the reason, if the record cannot be read."""
    try:
        return _parse(video_id, record)
    # Any error while reading one record is reported as damage to that record. It does not affect other records.
    except Exception as error:
        return Damaged(video_id, str(error) or type(error).__name__)


def _parse(video_id: str, record: Record) -> Snapshot:
    meta = parse_meta(record.meta)
    blocks: dict[str, list[bytes]] = {}
    for kind, flat in zip(record.cells[::2], record.cells[1::2], strict=True):
        blocks.setdefault(kind.decode(), []).extend(flat)
    series: dict[str, Series] = {}
    reach: dict[int, int] = {}
    signals: dict[str, Readings] = {}
    for kind in meta.types:
        if kind.name == SIGNALS:
            signals = _readings(blocks.get(SIGNALS, []))
        if kind.mode not in MODES and kind.name != REACH:
            continue
        by_bin = _cells(kind.name, blocks.get(kind.name, []))
        values = by_bin[:, 1]
        total = int(values.max() if kind.mode == CUMULATIVE else values.sum()) if len(values) else 0
        if total != kind.total:
            raise ValueError(f"the bins of {kind.name} hold {total}, but meta says {kind.total:.0f}")
        if kind.name == REACH:
            reach = dict(by_bin.tolist())
        else:
            series[kind.name] = Series(MODES[kind.mode], by_bin[:, 0].copy(), values.copy())
    stored = msgspec.structs.asdict(_metadata.decode(record.metadata))
    client = stored.pop(_CLIENT)
    return Snapshot(
        version=meta.version,
        video=Video.from_metadata(video_id, meta.published_us, stored),
        history=History(series, reach, signals),
        newest_us=meta.newest_us if meta.newest_us >= 0 else None,
        registered_us=meta.registered_us,
        client=client,
    )


def _readings(flat: Sequence[bytes]) -> dict[str, Readings]:
    """Convert a flat list of "bin:name" and "time value" texts to the readings of each signal."""
    found: dict[str, list[tuple[int, float]]] = {}
    for field, stored in zip(flat[::2], flat[1::2], strict=True):
        index, _, name = field.decode().partition(":")
        found.setdefault(name, []).append((int(index), float(stored.split(b" ")[1])))
    signals = {}
    for name, pairs in sorted(found.items()):
        bins, values = zip(*sorted(pairs), strict=True)
        signals[name] = Readings(np.array(bins, np.int64), np.array(values, np.float64))
        if bins[0] < 0 or bins[-1] >= N_BINS or not np.isfinite(signals[name].values).all():
            raise ValueError(f"the readings of {name} are not finite numbers in the bins 0 .. {N_BINS - 1}")
    return signals


def _cells(kind: str, flat: Sequence[bytes]) -> NDArray[np.int64]:
    """Convert a flat list of bins and values to an int64 array of shape (n, 2). Its rows are (bin, value) pairs, sorted by bin."""
    cells = np.array(list(map(int, flat)), np.int64).reshape(-1, 2)
    ordered: NDArray[np.int64] = cells[np.argsort(cells[:, 0])]
    if len(ordered) and (ordered[0, 0] < 0 or ordered[-1, 0] >= N_BINS or ordered[:, 1].min() < 0):
        raise ValueError(f"the bins of {kind} are not 0 .. {N_BINS - 1} with whole numbers from 0 on")
    return ordered
