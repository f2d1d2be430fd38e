"""Lowering a count that was wrong."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NoReturn

import msgspec

from service.problems import Conflict
from service.store.replies import NotCounted, TotalConflict
from service.times import iso


@dataclass(frozen=True, slots=True)
class Correction:
    """Lowers the count of a type from ``replaces``, which it must have now, because it was counted too high.

    Counters: readings of ``replaces`` become ``value``; with ``from_us`` (us), so do all readings from that time on that are
    above ``value``. The count is then the largest reading, which may be another one.

    Events: the sum becomes ``value``. The difference is subtracted from the bins with the largest sums; with ``from_us``, from
    those from that time on.
    """

    type: str
    value: int
    replaces: int
    from_us: int | None = None

    def packed(self) -> bytes:
        """The argument of the store's function ``correct``."""
        return msgspec.msgpack.encode({**asdict(self), "from_us": -1 if self.from_us is None else self.from_us})

    def raise_conflict(self, reply: TotalConflict | NotCounted) -> NoReturn:
        """Raise Conflict for the store's refusal."""
        if isinstance(reply, TotalConflict):
            raise Conflict(
                f"the count of {self.type} is {reply.total}, not the one to be replaced",
                field="replaces",
                value=str(self.replaces),
                allowed=str(reply.total),
            )
        raise Conflict(
            f"{reply.amount} of what is to be subtracted from {self.type} was not counted from that time on",
            field="from",
            value="" if self.from_us is None else iso(self.from_us),
            allowed="a time before the wrong readings, or nothing",
        )
