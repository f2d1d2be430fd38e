"""What a probe found: whether the event store takes writes, which servers it consists of, and what time it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from redis.exceptions import ClusterDownError

from service.store.redis.failures import CLOSED, NO_ANSWER, detail_of, kind_of

DOWN = NO_ANSWER | {CLOSED, "SLOTS"}
"""Kinds of failures of a server that does not answer."""


@dataclass(frozen=True, slots=True)
class State:
    """``kind`` and ``text`` say why no writes are taken (None: they are). ``servers``: run ids of the servers that answered.

    ``offset_s``: the store's clock minus ours, seconds, for the server that is furthest off; ``doubt_s``: its uncertainty.
    """

    kind: str | None = None
    text: str = ""
    servers: frozenset[str] = frozenset()
    offset_s: float | None = None
    doubt_s: float = 0.0
    errors: tuple[Exception, ...] = ()

    @property
    def detail(self) -> str:
        """Why no writes are taken, in a sentence; empty where they are."""
        return "" if self.kind is None else detail_of(self.kind)

    @property
    def status(self) -> str:
        """``ok``, ``down`` (no answer) or ``refuses`` (an answer, but no writes)."""
        return "ok" if self.kind is None else "down" if self.kind in DOWN else "refuses"

    def at(self, servers: frozenset[str]) -> Self:
        """The same state with these run ids, for servers that did not report theirs."""
        return replace(self, servers=servers)


def state_of(replies: Sequence[Sequence[Any]], began_s: float, ended_s: float) -> State:
    """The state, from each server's replies to the probe, to INFO and in a cluster to CLUSTER INFO.

    ``began_s`` and ``ended_s``: our time before and after the replies, seconds.
    """
    errors = tuple(error for reply in replies if (error := _refusal(reply)) is not None)
    middle_s = (began_s + ended_s) / 2
    offsets = [
        int(reply[0][0]) + int(reply[0][1]) / 1e6 - middle_s for reply in replies if not isinstance(reply[0], Exception)
    ]
    run_ids = frozenset(run_id for reply in replies if (run_id := _run_id(reply[1])))
    return State(
        kind=kind_of(errors[0]) if errors else None,
        text=str(errors[0]) or type(errors[0]).__name__ if errors else "",
        servers=run_ids if len(run_ids) == len(replies) else frozenset(),
        offset_s=max(offsets, key=abs) if offsets else None,
        doubt_s=(ended_s - began_s) / 2,
        errors=errors,
    )


def _refusal(reply: Sequence[Any]) -> Exception | None:
    if isinstance(reply[0], Exception):
        return reply[0]
    if len(reply) > 2 and isinstance(reply[2], bytes) and b"cluster_state:fail" in reply[2]:
        return ClusterDownError("CLUSTERDOWN The cluster is down")
    return None


def _run_id(info: Any) -> str:
    if isinstance(info, dict):
        return str(info.get("run_id", ""))
    text = info.decode("utf-8", "replace") if isinstance(info, bytes) else str(info)
    _, _, rest = text.partition("run_id:")
    return rest.split()[0] if rest else ""
