"""Whether the event store may drop what it has: by evicting keys when its memory is full, or by keeping nothing on a disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.store.redis.connection import RedisConnection
from service.store.redis.single_server import Command

_ASK: Final[list[Command]] = [["INFO", "memory"], ["INFO", "persistence"], ["CONFIG", "GET", "save"]]
_KEEPS_ALL: Final = "noeviction"


@dataclass(frozen=True, slots=True)
class Safety:
    """``policy`` is the maxmemory-policy, ``persistent`` whether anything is written to a disk; None: the server does not say."""

    policy: str | None = None
    persistent: bool | None = None

    @property
    def evicts(self) -> bool | None:
        """Whether keys go when memory is short."""
        return None if self.policy is None else self.policy != _KEEPS_ALL

    def warnings(self) -> list[str]:
        """What may be lost, in words."""
        found = []
        if self.evicts:
            found.append(
                f"maxmemory-policy is {self.policy}: at its maxmemory the event store evicts videos, counts and ids that are"
                f" still needed; set it to {_KEEPS_ALL}"
            )
        if self.persistent is False:
            found.append(
                "the event store has no persistence (appendonly no, and no save): a restart loses everything; set appendonly yes"
            )
        return found


async def look(link: RedisConnection) -> Safety | None:
    """Ask every server; the least safe answer counts. None when none answers."""
    answers = [_safety(said) for said in await link.everywhere("safety", _ASK)]
    heard = [one for one in answers if one is not None]
    if not heard:
        return None
    policies = [one.policy for one in heard if one.policy is not None]
    persistent = [one.persistent for one in heard]
    return Safety(
        policy=next((policy for policy in policies if policy != _KEEPS_ALL), policies[0] if policies else None),
        persistent=False if False in persistent else None if None in persistent else True,
    )


def _safety(said: Sequence[Any]) -> Safety | None:
    memory, persistence, save = said
    if isinstance(memory, Exception) and isinstance(persistence, Exception):
        return None
    logged = field_of(persistence, "aof_enabled")
    saves = _saves(save)
    persistent = True if logged == "1" or saves else False if logged == "0" and saves is False else None
    return Safety(field_of(memory, "maxmemory_policy"), persistent)


def field_of(told: Any, name: str) -> str | None:
    """A field of INFO, as the library parsed it or as it came."""
    if isinstance(told, Exception):
        return None
    if isinstance(told, dict):
        return None if name not in told else str(told[name])
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(f"{name}:")]
    return found[0] if found else None


def _saves(told: Any) -> bool | None:
    """Whether snapshots are saved; None where CONFIG is forbidden, as managed services do."""
    if isinstance(told, Exception) or not told:
        return None
    value = next(iter(told.values())) if isinstance(told, dict) else told[-1]
    return bool(value.strip())
