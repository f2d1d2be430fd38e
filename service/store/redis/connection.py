"""Calls to the Redis deployment, including calls of a library's Lua functions. Deadlines and failures are handled here.

If the server does not reply to a call, further calls fail at once until a background probe gets a reply. Therefore only the first
caller waits for the whole deadline while a server hangs. If the server refuses a call (OOM, READONLY, ...), the server has replied. The
refusal then only affects that call.

If the reply to a call is lost, the call is never repeated, because it may have been executed. Only the sender of the rows can repeat
the call safely, by sending the same event ids again. If the server refused a call without executing it, the call may be sent once or
twice again: to the new primary after a failover, to the node that now has the slot, or after the Lua functions were loaded again.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final, NoReturn

import structlog
from redis.exceptions import RedisError

from service.metrics import Metrics
from service.problems import Unavailable
from service.store.redis.failures import (
    ELSEWHERE,
    ERR,
    NO_ANSWER,
    NO_FUNCTION,
    REFUSED,
    WITHOUT_WRITES,
    detail_of,
    is_fault_of_ours,
    kind_of,
)
from service.store.redis.function_library import FunctionLibrary
from service.store.redis.server import Server
from service.store.redis.single_server import Command, RedisSilent
from service.store.redis.state import State, state_of

__all__ = ["Command", "RedisConnection"]

log = structlog.get_logger(__name__)

RETRY_S: Final = 0.1
"""Seconds to wait between two probes of a server that did not reply."""
PROBE_S: Final = 1.0
"""Time limit in seconds for one probe. It is short, because a new primary may take over while a probe waits."""
LOG_S: Final = 1.0
"""Minimum seconds between two log lines about the same kind of failure. The metrics count every failure."""
_RESENDS: Final = 2
"""Maximum number of times that a call is sent again. Only a call that was certainly not executed is sent again."""
_RESEND_PAUSE_S: Final = 0.05
wall_s = time.time
"""This machine's clock. It is compared with the store's clock."""


class RedisConnection:
    """Makes calls to the deployment at ``url``.

    Most methods raise Unavailable if the deployment does not answer in time, or refuses the call.
    """

    def __init__(
        self, url: str, library: FunctionLibrary, metrics: Metrics, *, deadline_s: float, connections: int
    ) -> None:
        self.server = Server(url, deadline_s=deadline_s, connections=connections)
        self.state = State()
        """The result of the last probe."""
        self.troubled = asyncio.Event()
        """An event that is set when a call fails, so that a probe is made soon."""
        self._library = library
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._probing: asyncio.Task[None] | None = None
        self._logged_at: dict[str, float] = {}

    async def close(self) -> None:
        """Drop every connection."""
        if self._probing is not None:
            self._probing.cancel()
        await self.server.close()

    async def ready(self) -> None:
        """Raise Unavailable, with the reason, unless every server accepts writes and has the library's Lua functions."""
        state = await self.probe()
        if state.kind is not None:
            self._fail("ready", state.kind, state.text)

    async def probe(self) -> State:
        """Find out whether each server accepts writes, over a new connection. Failures of a server are returned, not raised."""
        started = time.perf_counter()
        end = self._end(min(PROBE_S, self._deadline_s))
        found = await self._probe(end)
        if any(kind_of(error) == NO_FUNCTION for error in found.errors):
            await self._load(end)
            found = await self._probe(end)
        if self.state.servers and found.servers and found.servers != self.state.servers:
            log.warning("the event store is now on a different server, so all connections are replaced")
            await self.server.drop_connections()
        elif self.server.silent or found.kind is not None:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._deadline_s):
                    await self.server.refresh()
        if found.kind not in NO_ANSWER:
            self.server.note_answer()
        if found.kind in ELSEWHERE:
            await self.server.drop_connections()
        self.state = found if found.servers else found.at(self.state.servers)
        self._metrics.store_seconds.labels("ready").observe(time.perf_counter() - started)
        return self.state

    async def _probe(self, end: float) -> State:
        commands: list[Command] = [["FCALL", self._library.function("probe"), 0], ["INFO", "server"]]
        if self.server.is_cluster:
            commands.append(["CLUSTER", "INFO"])
        began_s = wall_s()
        replies = await self.server.everywhere(commands, end)
        return state_of(replies, began_s, wall_s())

    async def call(
        self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[str | bytes]]], *, partial: bool = False
    ) -> list[Any]:
        """Run the Lua function ``name`` on each (keys, arguments) pair, in one pipeline. Return the replies in order.

        ``partial``: if only some calls fail, Unavailable takes the place of their replies and is not raised.
        """
        function = self._library.function(name)
        commands: list[Command] = [["FCALL", function, len(keys), *keys, *arguments] for keys, arguments in calls]
        return await self._run(name, commands, partial=partial)

    async def clustered(self) -> bool:
        """Return whether the server is part of a cluster. In a cluster, one call may only use keys of one slot."""
        if (known := self.server.known_clustered) is not None:
            return known
        try:
            async with asyncio.timeout(self._deadline_s):
                return await self.server.clustered()
        except (RedisError, OSError, TimeoutError) as error:
            self._failed("info", error)

    async def pipeline(self, name: str, commands: Sequence[Command]) -> list[Any]:
        """Run plain commands in one pipeline, or in one per node of a cluster. Return the replies in order."""
        return await self._run(name, commands)

    async def scan(self, name: str, position: str, pattern: str, count: int) -> tuple[str, list[bytes]]:
        """Return the position to continue from, and some of the keys that match ``pattern``.

        The position "" starts a scan. If the returned position is "", the scan has ended.
        """
        try:
            return await self.server.scan(position, pattern, count, self._end(self._deadline_s))
        except (RedisError, OSError, TimeoutError) as error:
            self._failed(name, error)

    async def everywhere(self, name: str, commands: Sequence[Command]) -> list[list[Any]]:
        """Run plain commands on each server that accepts writes. Return one list of replies per server.

        An exception takes the place of a reply that is an error or is missing. No exception is raised.
        """
        return await self.server.everywhere(commands, self._end(self._deadline_s))

    def _end(self, seconds: float) -> float:
        return asyncio.get_running_loop().time() + seconds

    async def _run(self, name: str, commands: Sequence[Command], *, partial: bool = False) -> list[Any]:
        started = time.perf_counter()
        end = self._end(self._deadline_s)
        generation = self.server.generation
        try:
            replies = await self.server.send(commands, end)
            for reply in replies:
                if isinstance(reply, Exception):
                    await self._resend(commands, replies, end, generation)
                    break
            partial = partial and not all(isinstance(reply, Exception) for reply in replies)
            for i, reply in enumerate(replies):
                if isinstance(reply, Exception):
                    try:
                        self._failed(name, reply)
                    except Unavailable as problem:
                        if not partial:
                            raise
                        replies[i] = problem
            return replies
        finally:
            self._metrics.store_seconds.labels(name).observe(time.perf_counter() - started)

    async def _resend(self, commands: Sequence[Command], replies: list[Any], end: float, generation: int) -> None:
        """Resend the commands that were certainly not executed, and put the new replies into ``replies``.

        The reason for the refusal is handled first, for example by loading missing Lua functions.
        """
        for attempt in range(_RESENDS):
            kinds = {i: kind_of(reply) for i, reply in enumerate(replies) if isinstance(reply, Exception)}
            refused = [i for i, kind in kinds.items() if kind in REFUSED]
            if not refused or self._end(_RESEND_PAUSE_S) > end:
                return
            found = {kinds[i] for i in refused}
            if NO_FUNCTION in found and (fault := await self._load(end)) is not None:
                # The server lacks the Lua functions, because it restarted empty or is a new primary. Loading them fails as well.
                replies[:] = [fault if kinds.get(i) == NO_FUNCTION else reply for i, reply in enumerate(replies)]
                return
            if attempt and found != {NO_FUNCTION}:
                await asyncio.sleep(_RESEND_PAUSE_S)
            if found & ELSEWHERE:
                await self.server.drop_connections(generation)
            if "CLUSTERDOWN" in found:
                await self.server.refresh()
            if found & {"MOVED", "ASK"}:
                await self.server.recheck_cluster()
            generation = self.server.generation
            for i, reply in zip(refused, await self.server.send([commands[i] for i in refused], end), strict=True):
                replies[i] = reply

    async def _load(self, end: float) -> Exception | None:
        """Load the Lua functions on every server that does not have them. Return the first refusal, or None if there is none."""
        replies = await self.server.everywhere([["FUNCTION", "LOAD", self._library.source]], end)
        return next((r for [r] in replies if isinstance(r, Exception) and "already exists" not in str(r)), None)

    def _failed(self, name: str, error: BaseException) -> NoReturn:
        if is_fault_of_ours(error):
            raise error
        kind = kind_of(error)
        if kind != ERR and self.server.silent and (self._probing is None or self._probing.done()):
            self._probing = asyncio.create_task(self._until_it_replies())
        self._fail(name, kind, str(error) or type(error).__name__, error)

    def _fail(self, name: str, kind: str, text: str, error: BaseException | None = None) -> NoReturn:
        self._metrics.store_failures.labels(name).inc()
        self._metrics.store_errors.labels(kind).inc()
        if name != "ready":
            self.troubled.set()
            if kind in WITHOUT_WRITES and self.state.kind is None:
                # Readiness then reports the failure at once. The next probe finds out whether the reason still exists.
                self.state = replace(self.state, kind=kind, text=text)
        now = time.monotonic()
        if not isinstance(error, RedisSilent) and now - self._logged_at.get(kind, float("-inf")) >= LOG_S:
            self._logged_at[kind] = now
            log.warning("a call to the event store failed", call=name, kind=kind, error=text)
        raise Unavailable(detail_of(kind), part="store", reason=kind) from error

    async def _until_it_replies(self) -> None:
        while self.server.silent:
            await self.probe()
            if self.server.silent:
                await asyncio.sleep(RETRY_S)
