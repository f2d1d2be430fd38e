"""Finds out whether the event store may lose data.

The store may lose data if it evicts keys when memory is full, or if it does not write to a disk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from service.store.redis.connection import RedisConnection
from service.store.redis.single_server import Command

_QUESTIONS: Final[list[Command]] = [["INFO", "memory"], ["INFO", "persistence"], ["CONFIG", "GET", "save"]]
_NO_EVICTION: Final = "noeviction"


@dataclass(frozen=True, slots=True)
class Safety:
    """Whether the event store may lose data.

    ``policy``: the maxmemory-policy, or None if the server does not report it.
    ``persistent``: whether data is written to a disk, or None if the server does not report it.
    """

    policy: str | None = None
    persistent: bool | None = None

    @property
    def evicts(self) -> bool | None:
        """Whether keys are evicted when memory is full. None if this is unknown."""
        return None if self.policy is None else self.policy != _NO_EVICTION

    def warnings(self) -> list[str]:
        """Return one sentence for each reason why data may be lost."""
        found = []
        if self.evicts:
            found.append(
                f"maxmemory-policy is {self.policy}: when its memory is full, the event store evicts videos, counts and ids that"
                f" are still needed; set it to {_NO_EVICTION}"
            )
        if self.persistent is False:
            found.append(
                "the event store has no persistence (appendonly no, and no save): a restart loses everything; set appendonly yes"
            )
        return found


async def find_safety(connection: RedisConnection) -> Safety | None:
    """Ask every server, and return the least safe value of each field. Return None if no server answers."""
    answers = [_safety(replies) for replies in await connection.everywhere("safety", _QUESTIONS)]
    known = [answer for answer in answers if answer is not None]
    if not known:
        return None
    policies = [answer.policy for answer in known if answer.policy is not None]
    persistent = [answer.persistent for answer in known]
    return Safety(
        policy=next((policy for policy in policies if policy != _NO_EVICTION), policies[0] if policies else None),
        persistent=False if False in persistent else None if None in persistent else True,
    )


def _safety(replies: Sequence[Any]) -> Safety | None:
    memory, persistence, save = replies
    if isinstance(memory, Exception) and isinstance(persistence, Exception):
        return None
    log_enabled = field_of(persistence, "aof_enabled")
    saves = _saves(save)
    persistent = True if log_enabled == "1" or saves else False if log_enabled == "0" and saves is False else None
    return Safety(field_of(memory, "maxmemory_policy"), persistent)


def field_of(info: Any, name: str) -> str | None:
    """Return a field of a reply to INFO, or None if the field is missing. ``info`` is the reply, either as text or parsed by redis-py."""
    if isinstance(info, Exception):
        return None
    if isinstance(info, dict):
        return None if name not in info else str(info[name])
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else str(info)
    found = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith(f"{name}:")]
    return found[0] if found else None


def _saves(reply: Any) -> bool | None:
    """Return whether the server saves snapshots. Return None if CONFIG is forbidden, as on managed services."""
    if isinstance(reply, Exception) or not reply:
        return None
    value = next(iter(reply.values())) if isinstance(reply, dict) else reply[-1]
    return bool(value.strip())
