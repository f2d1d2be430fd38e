"""The replies of the store's Lua functions (``lua/``). Replies are decoded only in this module.

A reply about a video is a list. Its first element is a tag that names the kind of reply. Positions of rows are counted from the
video's first row in the call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import msgspec


class RefusedRow(msgspec.Struct, array_like=True, frozen=True):
    """A row that the store refused: its position, a reason code, and the engagement type or field that the reason concerns."""

    position: int
    reason: str
    subject: str


class Applied(msgspec.Struct, array_like=True, gc=False):
    """The rows of a video were applied, except the ``duplicates`` and the ``rejected`` rows.

    ``corrected``: positions of counters rows with a value below the total. A position occurs once for each such value.
    The following fields are only set by a registration.
    ``parked_applied``: number of parked rows that were applied.
    ``parked_rejected``: number of parked rows that were not applied.
    ``created``: whether the video is new.
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
    """The video did not change."""


class Parked(msgspec.Struct, array_like=True, tag="parked", gc=False):
    """The video is not registered. ``kept`` is the number of its rows that were parked until the video is registered."""

    kept: int
    duplicates: Sequence[int]
    rejected: Sequence[RefusedRow]


class ParkingFull(msgspec.Struct, array_like=True, tag="full", gc=False):
    """The video is not registered, and no rows may be parked, so its only row was refused."""


class Stale(msgspec.Struct, array_like=True, tag="stale", gc=False):
    """Nothing was applied, because the rows were merged with a publication time that differs from the store's."""


class PublicationConflict(msgspec.Struct, array_like=True, tag="conflict", gc=False):
    """A registration was refused, because rows have already been applied with a different publication time, ``published_us``."""

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
        """The reason, without the prefix that marks damage in error messages of the Lua functions."""
        return self.text.removeprefix("damaged: ")


class Failed(msgspec.Struct, array_like=True, tag="error", gc=False):
    """The Lua function failed for this video."""

    message: str


class Lost(msgspec.Struct, tag="lost", gc=False):
    """There is no reply, so it is unknown whether the rows were stored."""


ApplyReply = Changed | Unchanged | Parked | ParkingFull | Stale | PublicationConflict | Refused | DamagedReply | Failed
"""A reply of the Lua function ``apply`` about one video."""


class Corrected(msgspec.Struct, array_like=True, tag="corrected"):
    """A correction was stored. The fields are the video's new version and the type's new total."""

    version: int
    total: int


class Unknown(msgspec.Struct, array_like=True, tag="unknown"):
    """The video is not registered."""


class TotalConflict(msgspec.Struct, array_like=True, tag="conflict"):
    """The type's total is not the one that the correction replaces."""

    total: int


class NotCounted(msgspec.Struct, array_like=True, tag="missing"):
    """The correction subtracts more than was counted in the correction's period. The excess is ``amount``."""

    amount: int


CorrectReply = Corrected | Unknown | TotalConflict | NotCounted | DamagedReply | Failed
"""A reply of the Lua function ``correct``."""


class Record(msgspec.Struct, frozen=True, gc=False):
    """A reply of the Lua function ``read`` with a whole video.

    ``meta``: the packed head.
    ``metadata``: JSON text.
    ``cells``: a flat list that alternates between an engagement type and the type's [bin, value, ...] list. A type may occur several
    times.
    """

    meta: bytes
    metadata: bytes
    cells: Sequence[Any]


class Current(msgspec.Struct):
    """A reply of the Lua function ``read`` if the caller already has the newest version."""


_apply: Final = msgspec.msgpack.Decoder(list[ApplyReply])
_correct: Final = msgspec.msgpack.Decoder(CorrectReply)
_CURRENT: Final = Current()


def decode_apply(packed: bytes) -> Sequence[ApplyReply]:
    """Decode the replies of ``apply``. There is one reply for each video of the call."""
    try:
        return _apply.decode(packed)
    except msgspec.ValidationError:
        # A damaged record may hold a value of a wrong type. The replies about the other videos are still valid.
        return [_convert(reply, ApplyReply) for reply in msgspec.msgpack.decode(packed)]


def decode_correct(packed: bytes) -> CorrectReply:
    """Decode the reply of ``correct``."""
    try:
        reply: CorrectReply = _correct.decode(packed)
    except msgspec.ValidationError as error:
        return DamagedReply(str(error))
    return reply


def parse_read(reply: Sequence[Any]) -> Record | Current | DamagedReply | None:
    """Decode the reply of ``read`` about one video. Return None if the video is not registered."""
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
