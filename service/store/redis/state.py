"""The result of a probe: whether the event store accepts writes, which servers it consists of, and what time its clock shows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

from redis.exceptions import ClusterDownError

from service.store.redis.failures import CLOSED, NO_ANSWER, detail_of, kind_of

DOWN = NO_ANSWER | {CLOSED, "SLOTS"}
"""Kinds of failures that mean that the server does not answer."""


@dataclass(frozen=True, slots=True)
class State:
    """The result of a probe.

    ``kind`` and ``text``: why writes are not accepted. ``kind`` is None if they are accepted.
    ``servers``: the run ids of all servers. The set is empty if a server did not report its run id.
    ``offset_s``: the store's clock minus ours in seconds, for the server with the largest difference.
    ``doubt_s``: the uncertainty of ``offset_s`` in seconds.
    ``errors``: one error for each server that failed the probe.
    """

    kind: str | None = None
    text: str = ""
    servers: frozenset[str] = frozenset()
    offset_s: float | None = None
    doubt_s: float = 0.0
    errors: tuple[Exception, ...] = ()

    @property
    def detail(self) -> str:
        """One sentence that says why writes are not accepted. Empty if they are accepted."""
        return "" if self.kind is None else detail_of(self.kind)

    @property
    def status(self) -> str:
        """``ok``, ``down`` or ``refuses``.

        With ``down``, the store does not answer. With ``refuses``, the store answers but does not accept writes.
        """
        return "ok" if self.kind is None else "down" if self.kind in DOWN else "refuses"

    def at(self, servers: frozenset[str]) -> Self:
        """Return this state with the given run ids. Callers use this method if a server did not report its run id."""
        return replace(self, servers=servers)


def state_of(replies: Sequence[Sequence[Any]], began_s: float, ended_s: float) -> State:
    """Combine the replies of all servers into one state.

    Args:
        replies: for each server, its replies to the probe and to INFO, and in a cluster also to CLUSTER INFO.
        began_s: this machine's time in seconds before the commands were sent.
        ended_s: this machine's time in seconds after the replies arrived.
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
