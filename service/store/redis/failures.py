"""Kinds of failures of Redis calls: each kind needs another reaction, and only some mean that no server answers.

A server that refuses a command names the reason in the first word of its error (OOM, READONLY, ...). It has not executed the
command, so the command may be sent again. A call whose reply was lost may have been executed, and is never repeated here.
"""

from __future__ import annotations

import re
from typing import Final

from redis.asyncio.sentinel import MasterNotFoundError
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ClusterError,
    MasterDownError,
    MaxConnectionsError,
    MovedError,
    ReadOnlyError,
    RedisClusterException,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

TIMEOUT: Final = "TIMEOUT"
UNREACHED: Final = "UNREACHED"
CLOSED: Final = "CLOSED"
ERR: Final = "ERR"
NO_FUNCTION: Final = "NOFUNCTION"

_SILENT: Final = "the event store does not answer"
DETAILS: Final = {
    TIMEOUT: _SILENT,
    UNREACHED: _SILENT,
    CLOSED: "the event store does not answer: it closed the connection before its reply",
    "SLOTS": "the event store does not answer: the cluster cannot be reached, or does not cover every slot",
    "CONNECTIONS": "the event store does not answer: every connection is in use",
    "MAXCLIENTS": "the event store takes no further connection: its maxclients is reached",
    "OOM": "the event store takes no writes: it is out of memory (OOM: its maxmemory is reached)",
    "READONLY": "the event store takes no writes: its server is a read-only replica (READONLY)",
    "LOADING": "the event store is not ready: it is loading its data (LOADING)",
    "MISCONF": "the event store takes no writes: it cannot write to its disk (MISCONF)",
    "NOREPLICAS": "the event store takes no writes: too few replicas are in step (NOREPLICAS)",
    "MASTERDOWN": "the event store is a replica that has lost its primary (MASTERDOWN)",
    "NOAUTH": "the event store asks for a password, and REDIS_URL has none (NOAUTH)",
    "WRONGPASS": "the event store does not accept the user or password of REDIS_URL (WRONGPASS)",
    "NOPERM": "the event store does not let the user of REDIS_URL run a command that is needed (NOPERM)",
    "MOVED": "the event store is a cluster whose slots are being moved (MOVED)",
    "ASK": "the event store is a cluster whose slots are being moved (ASK)",
    "TRYAGAIN": "the event store is a cluster whose slots are being moved (TRYAGAIN)",
    "CLUSTERDOWN": "the event store is a cluster that is down (CLUSTERDOWN)",
    "CROSSSLOT": "the event store is a cluster, and a call touched two of its slots (CROSSSLOT)",
    "BUSY": "the event store is busy with a script that takes too long (BUSY)",
    "UNBLOCKED": "the event store's server became a read-only replica (UNBLOCKED)",
    NO_FUNCTION: "the event store lost its functions",
}
"""The detail that a client of the service reads, by kind."""

NO_ANSWER: Final = frozenset({TIMEOUT, UNREACHED})
"""Kinds after which further calls would only wait for the same deadline in vain."""
ELSEWHERE: Final = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN"})
"""Kinds that mean that the primary is now another server."""
WITHOUT_WRITES: Final = frozenset(
    {"OOM", "READONLY", "LOADING", "MISCONF", "NOREPLICAS", "MASTERDOWN", "NOAUTH", "WRONGPASS", "CLUSTERDOWN", "BUSY"}
)
"""Kinds that every write would meet, once one call has met them."""
REFUSED: Final = frozenset(
    {"READONLY", "LOADING", "MASTERDOWN", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", NO_FUNCTION}
)
"""Kinds of a call that was certainly not executed, and may succeed soon, here or on another server."""

_WORD: Final = re.compile(r"-?([A-Z][A-Z0-9]{2,})\b")
_TYPES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (MaxConnectionsError, "CONNECTIONS"),
    (BusyLoadingError, "LOADING"),
    (ReadOnlyError, "READONLY"),
    # In redis-py MovedError is a subclass of AskError, so it comes first.
    (MovedError, "MOVED"),
    (AskError, "ASK"),
    (TryAgainError, "TRYAGAIN"),
    # MasterDownError is a subclass of ClusterDownError.
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (RedisTimeoutError, TIMEOUT),
    (TimeoutError, TIMEOUT),
)


class Unreached(RedisConnectionError):
    """No connection could be made: the call was never sent."""


def kind_of(error: BaseException) -> str:
    """The kind of an error of the client library, of the network, or of the server."""
    for form, kind in _TYPES:
        if isinstance(error, form):
            return kind
    text = str(error)
    if "Function not found" in text:
        return NO_FUNCTION
    if "max number of clients" in text:
        return "MAXCLIENTS"
    if isinstance(error, AuthenticationError):
        code = getattr(error, "status_code", None)
        return "NOAUTH" if code == "NOAUTH" or "required" in text else "WRONGPASS"
    if isinstance(error, (Unreached, MasterNotFoundError)):
        return UNREACHED
    if isinstance(error, (ClusterError, RedisClusterException)) and not isinstance(error, ResponseError):
        return "SLOTS"
    if isinstance(error, ResponseError):
        code = getattr(error, "status_code", None)
        found = _WORD.match(text)
        return str(code) if code else found[1] if found else ERR
    if "No connection available" in text:
        return "CONNECTIONS"
    return CLOSED if isinstance(error, RedisConnectionError) else UNREACHED if isinstance(error, OSError) else ERR


def detail_of(kind: str) -> str:
    """A sentence that explains a kind and names it."""
    return DETAILS.get(kind) or f"the event store refused the call ({kind})"


def is_fault_of_ours(error: BaseException) -> bool:
    """Whether one of our own functions failed for a reason that the server's state does not explain."""
    return isinstance(error, ResponseError) and "script: m3tr_" in str(error) and kind_of(error) not in DETAILS
