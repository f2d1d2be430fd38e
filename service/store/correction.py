"""Lowers a count that was too high."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import NoReturn

import msgspec

from service.problems import Conflict
from service.store.replies import NotCounted, TotalConflict
from service.times import iso


@dataclass(frozen=True, slots=True)
class Correction:
    """Lowers the count of a type from ``replaces`` to ``value``. The present count must be equal to ``replaces``.

    If the type has counters and ``from_us`` is None, all readings equal to ``replaces`` become ``value``. If ``from_us`` is a time
    (us), the readings from that time on are changed: each reading above ``value`` becomes ``value``. The count is then the largest
    remaining reading, which may be larger than ``value``.

    If the type has events, their sum becomes ``value``. The difference is subtracted from the age bins with the largest sums. If
    ``from_us`` is a time, only bins from that time on are changed.
    """

    type: str
    value: int
    replaces: int
    from_us: int | None = None

    def packed(self) -> bytes:
        """Pack the correction as the argument of the store's Lua function ``correct``."""
        return msgspec.msgpack.encode({**asdict(self), "from_us": -1 if self.from_us is None else self.from_us})

    def raise_conflict(self, reply: TotalConflict | NotCounted) -> NoReturn:
        """Raise the Conflict that explains why the store refused the correction."""
        if isinstance(reply, TotalConflict):
            raise Conflict(
                f"the count of {self.type} is {reply.total}, which is not the count to be replaced",
                field="replaces",
                value=str(self.replaces),
                allowed=str(reply.total),
            )
        raise Conflict(
            f"{self.type}: {reply.amount} of the amount to be subtracted was not counted from that time on",
            field="from",
            value="" if self.from_us is None else iso(self.from_us),
            allowed="a time before the wrong readings, or no time",
        )
