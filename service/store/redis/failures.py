"""Kinds of failures of Redis calls. Each kind needs a different reaction. Only some kinds mean that no server answers.

If a server refuses a command, the first word of its error names the reason (OOM, READONLY, ...). The server has then not executed
the command, so the command may be sent again. If the reply to a call was lost, the call may have been executed. Such a call is
never repeated.
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
    "MAXCLIENTS": "the event store accepts no further connection: its maxclients is reached",
    "OOM": "the event store accepts no writes: it is out of memory (OOM: its maxmemory is reached)",
    "READONLY": "the event store accepts no writes: its server is a read-only replica (READONLY)",
    "LOADING": "the event store is not ready: it is loading its data (LOADING)",
    "MISCONF": "the event store accepts no writes: it cannot write to its disk (MISCONF)",
    "NOREPLICAS": "the event store accepts no writes: too few of its replicas are up to date (NOREPLICAS)",
    "MASTERDOWN": "the event store is a replica that has lost its primary (MASTERDOWN)",
    "NOAUTH": "the event store requires a password, but REDIS_URL has none (NOAUTH)",
    "WRONGPASS": "the event store does not accept the user or password of REDIS_URL (WRONGPASS)",
    "NOPERM": "the event store does not allow the user of REDIS_URL to run a required command (NOPERM)",
    "MOVED": "the event store is a cluster whose slots are being moved (MOVED)",
    "ASK": "the event store is a cluster whose slots are being moved (ASK)",
    "TRYAGAIN": "the event store is a cluster whose slots are being moved (TRYAGAIN)",
    "CLUSTERDOWN": "the event store is a cluster that is down (CLUSTERDOWN)",
    "CROSSSLOT": "the event store is a cluster, and a call used keys of two slots (CROSSSLOT)",
    "BUSY": "the event store is busy with a script that takes too long (BUSY)",
    "UNBLOCKED": "the event store's server became a read-only replica (UNBLOCKED)",
    NO_FUNCTION: "the event store lost its functions",
}
"""For each kind, the explanation that a client of the service gets."""

NO_ANSWER: Final = frozenset({TIMEOUT, UNREACHED})
"""Kinds that mean that the server does not answer. Further calls would only wait until their deadline."""
ELSEWHERE: Final = frozenset({"READONLY", "UNBLOCKED", "MASTERDOWN"})
"""Kinds that mean that a different server is now the primary."""
WITHOUT_WRITES: Final = frozenset(
    {"OOM", "READONLY", "LOADING", "MISCONF", "NOREPLICAS", "MASTERDOWN", "NOAUTH", "WRONGPASS", "CLUSTERDOWN", "BUSY"}
)
"""Kinds that affect every write. If one call fails with such a kind, all further writes would fail as well."""
REFUSED: Final = frozenset(
    {"READONLY", "LOADING", "MASTERDOWN", "MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN", NO_FUNCTION}
)
"""Kinds that mean that a call was certainly not executed. The call may succeed soon, on the same server or on a different server."""

_WORD: Final = re.compile(r"-?([A-Z][A-Z0-9]{2,})\b")
_TYPES: Final[tuple[tuple[type[Exception], str], ...]] = (
    (MaxConnectionsError, "CONNECTIONS"),
    (BusyLoadingError, "LOADING"),
    (ReadOnlyError, "READONLY"),
    # In redis-py, MovedError is a subclass of AskError, so MovedError must be checked first.
    (MovedError, "MOVED"),
    (AskError, "ASK"),
    (TryAgainError, "TRYAGAIN"),
    # MasterDownError is a subclass of ClusterDownError, so MasterDownError must be checked first.
    (MasterDownError, "MASTERDOWN"),
    (ClusterDownError, "CLUSTERDOWN"),
    (RedisTimeoutError, TIMEOUT),
    (TimeoutError, TIMEOUT),
)


class Unreached(RedisConnectionError):
    """No connection could be made, so the call was not sent."""


def kind_of(error: BaseException) -> str:
    """Return the kind of an error. The error may come from the client library, the network or the server."""
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
    """Return a sentence that explains a kind of failure."""
    return DETAILS.get(kind) or f"the event store refused the call ({kind})"


def is_fault_of_ours(error: BaseException) -> bool:
    """Return whether one of our own Lua functions failed for a reason that the server's state does not explain."""
    return isinstance(error, ResponseError) and "script: m3tr_" in str(error) and kind_of(error) not in DETAILS
