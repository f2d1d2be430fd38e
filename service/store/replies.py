"""Replies of the store's functions (``store.lua``), decoded in this one place.

A reply about a video is a list whose first element is its tag. Positions of rows in it are relative to the video's first row in
the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec


class RefusedRow(msgspec.Struct, array_like=True, frozen=True):
    """A row that the store refused: its position, a reason code, and the type or field that it is about."""

    position: int
    reason: str
    subject: str


class Applied(msgspec.Struct, array_like=True, gc=False):
    """The rows of a video were applied, all but the ``duplicates`` and the ``rejected`` ones.

    ``corrected``: positions of counters rows with a value below the total, once for each such value. The last three come from a
    registration: how many parked rows were applied, how many were not, and whether the video is new.
    """

    version: int
    published_us: int
    duplicates: Sequence[int] = ()
    rejected: Sequence[RefusedRow] = ()
    corrected: Sequence[int] = ()
    parked_applied: int = 0
    parked_rejected: int = 0
    created: bool = False


class Changed(Applied, array_like=True, tag="changed", gc=False):
    """The video changed and has a new version."""


class Unchanged(Applied, array_like=True, tag="unchanged", gc=False):
    """The video is as it was before."""


class Parked(msgspec.Struct, array_like=True, tag="parked", gc=False):
    """The video is not registered: ``kept`` of its rows wait for that."""

    kept: int
    duplicates: Sequence[int]
    rejected: Sequence[RefusedRow]


class ParkingFull(msgspec.Struct, array_like=True, tag="full", gc=False):
    """The video is not registered, and its only row was refused, as no rows may be parked."""


class Stale(msgspec.Struct, array_like=True, tag="stale", gc=False):
    """Nothing was applied: the rows were merged by another publication time than the store has."""


class PublicationConflict(msgspec.Struct, array_like=True, tag="conflict", gc=False):
    """A registration was refused: rows were applied under another publication time, ``published_us``."""

    published_us: int


class Refused(msgspec.Struct, array_like=True, tag="refused", gc=False):
    """A strict call was refused because of the ``rejected`` rows."""

    published_us: int
    rejected: Sequence[RefusedRow]


class DamagedReply(msgspec.Struct, array_like=True, tag="damaged", gc=False):
    """The video's record cannot be read."""

    text: str

    @property
    def why(self) -> str:
        """The reason, without the mark by which the functions know it."""
        return self.text.removeprefix("damaged: ")


class Failed(msgspec.Struct, array_like=True, tag="error", gc=False):
    """The function failed for this video."""

    message: str


class Lost(msgspec.Struct, tag="lost", gc=False):
    """There is no reply: whether the rows were stored is not known."""


ApplyReply = Changed | Unchanged | Parked | ParkingFull | Stale | PublicationConflict | Refused | DamagedReply | Failed
"""The reply of ``apply`` about one video."""


class Corrected(msgspec.Struct, array_like=True, tag="corrected"):
    """A correction was stored: the video's new version, and the type's total now."""

    version: int
    total: int


class Unknown(msgspec.Struct, array_like=True, tag="unknown"):
    """The video is not registered."""


class TotalConflict(msgspec.Struct, array_like=True, tag="conflict"):
    """The total is not the one that the correction replaces."""

    total: int


class NotCounted(msgspec.Struct, array_like=True, tag="missing"):
    """``amount`` of what is to be subtracted was not counted in the period that the correction names."""

    amount: int


CorrectReply = Corrected | Unknown | TotalConflict | NotCounted | DamagedReply | Failed
"""The reply of ``correct``."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """The reply of ``read`` with a whole video: packed meta, metadata (JSON), and (type, {bin, value, ...}) pairs."""

    meta: bytes
    metadata: bytes
    cells: Sequence[Any]


class Current(msgspec.Struct):
    """The reply of ``read`` where the caller's version is still the newest."""


_apply: Final = msgspec.msgpack.Decoder(list[ApplyReply])
_correct: Final = msgspec.msgpack.Decoder(CorrectReply)
_CURRENT: Final = Current()


def decode_apply(packed: bytes) -> Sequence[ApplyReply]:
    """The replies of ``apply``, one for each video of the call."""
    try:
        return _apply.decode(packed)
    except msgspec.ValidationError:
        # A damaged record may hold a value of another type; the other videos' replies are still good.
        return [_convert(reply, ApplyReply) for reply in msgspec.msgpack.decode(packed)]


def decode_correct(packed: bytes) -> CorrectReply:
    """The reply of ``correct``."""
    try:
        reply: CorrectReply = _correct.decode(packed)
    except msgspec.ValidationError as error:
        return DamagedReply(str(error))
    return reply


def parse_read(reply: Sequence[Any]) -> Record | Current | DamagedReply | None:
    """The reply of ``read`` about one video; None where it is not registered."""
    if not reply:
        return None
    if len(reply) == 1:
        return _CURRENT
    if reply[0] == b"damaged":
        return DamagedReply(reply[1].decode("utf-8", "replace"))
    _version, meta, metadata, cells = reply
    return Record(meta, metadata, cells)


def _convert(reply: Any, kind: Any) -> Any:
    try:
        return msgspec.convert(reply, kind)
    except msgspec.ValidationError as error:
        return DamagedReply(str(error))
