"""What a probe found: whether the event store takes writes, who the servers are, and what time it is there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from redis.exceptions import ClusterDownError

from service.store.redis.failures import CLOSED, NO_ANSWER, detail_of, kind_of

DOWN = NO_ANSWER | {CLOSED, "SLOTS"}
"""Kinds of a server that says nothing."""


@dataclass(frozen=True, slots=True)
class State:
    """``kind`` and ``text`` say why no write is taken (None: it is). ``servers`` are the run ids of those that answered.

    ``offset_s`` is the store's clock minus ours, seconds, of the server that is furthest off; ``doubt_s`` how far that may be wrong.
    """

    kind: str | None = None
    text: str = ""
    servers: frozenset[str] = frozenset()
    offset_s: float | None = None
    doubt_s: float = 0.0
    errors: tuple[Exception, ...] = ()

    @property
    def detail(self) -> str:
        """Why no write is taken, in a sentence; empty where it is."""
        return "" if self.kind is None else detail_of(self.kind)

    @property
    def word(self) -> str:
        """ok, down (no answer) or refuses (an answer, but no writes)."""
        return "ok" if self.kind is None else "down" if self.kind in DOWN else "refuses"

    def at(self, servers: frozenset[str]) -> Self:
        """The same of servers that did not say who they are."""
        return replace(self, servers=servers)


def state_of(replies: Sequence[Sequence[Any]], began_s: float, ended_s: float) -> State:
    """The state from what each server, between two times of ours, said to the probe, to INFO and in a cluster to CLUSTER INFO."""
    errors = tuple(error for said in replies if (error := _refusal(said)) is not None)
    middle_s = (began_s + ended_s) / 2
    offsets = [
        int(said[0][0]) + int(said[0][1]) / 1e6 - middle_s for said in replies if not isinstance(said[0], Exception)
    ]
    names = frozenset(name for said in replies if (name := _run_id(said[1])))
    return State(
        kind=kind_of(errors[0]) if errors else None,
        text=str(errors[0]) or type(errors[0]).__name__ if errors else "",
        servers=names if len(names) == len(replies) else frozenset(),
        offset_s=max(offsets, key=abs) if offsets else None,
        doubt_s=(ended_s - began_s) / 2,
        errors=errors,
    )


def _refusal(said: Sequence[Any]) -> Exception | None:
    if isinstance(said[0], Exception):
        return said[0]
    if len(said) > 2 and isinstance(said[2], bytes) and b"cluster_state:fail" in said[2]:
        return ClusterDownError("CLUSTERDOWN The cluster is down")
    return None


def _run_id(told: Any) -> str:
    if isinstance(told, dict):
        return str(told.get("run_id", ""))
    text = told.decode("utf-8", "replace") if isinstance(told, bytes) else str(told)
    _, _, rest = text.partition("run_id:")
    return rest.split()[0] if rest else ""
