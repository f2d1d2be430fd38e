"""The line to Redis: connections, deadlines, and calls of our function library.

After a call that the server did not reply to, further ones fail at once, until it is seen in the background to answer: a
server that hangs costs one deadline, not each caller its own.

No call is ever repeated by the client library: a write whose answer got lost may have been applied, and only the
sender can repeat it safely, by sending the same event ids again.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Coroutine, Sequence
from contextlib import suppress
from importlib import resources
from typing import Any, Final, TypeVar

import structlog
from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from model.bins import EDGES_US
from service.metrics import Metrics
from service.problems import Unavailable
from service.store.keys import video_prefix

log = structlog.get_logger(__name__)

Command = Sequence[str | bytes | int | float]

RETRY_S: Final = 0.1
"""Seconds between two attempts to reach a server that did not reply."""
_MISSING: Final = "Function not found"
T = TypeVar("T")


def library() -> tuple[str, str]:
    """The function library's source and its tag: a hash of the source, so that two releases can share one Redis."""
    template = resources.files("service.store").joinpath("store.lua").read_text("utf-8")
    source = template.replace("@EDGES@", ",".join(str(edge) for edge in EDGES_US.tolist()))
    tag = hashlib.sha256(source.encode()).hexdigest()[:12]
    return source.replace("@TAG@", tag), tag


class Link:
    """A pool of connections to one server; every method raises Unavailable when it does not answer in time."""

    def __init__(self, url: str, metrics: Metrics, *, deadline_s: float, connections: int) -> None:
        self._pool = BlockingConnectionPool.from_url(
            url,
            max_connections=connections,
            timeout=deadline_s,
            socket_timeout=deadline_s,
            socket_connect_timeout=deadline_s,
            retry=Retry(NoBackoff(), 0),
            client_name="m3tr",
        )
        self._redis = Redis(connection_pool=self._pool)
        self._metrics = metrics
        self._deadline_s = deadline_s
        self._clustered: bool | None = None
        self._silent = False
        self._asking: asyncio.Task[None] | None = None
        self._source, self._tag = library()

    async def close(self) -> None:
        """Drop every connection."""
        if self._asking is not None:
            self._asking.cancel()
        await self._redis.aclose()
        await self._pool.aclose()

    async def ready(self) -> None:
        """Check that the server answers, and that it has our functions."""
        await self._within("ready", self._check())
        self._silent = False

    async def call(self, name: str, calls: Sequence[tuple[Sequence[str], Sequence[str | bytes]]]) -> list[Any]:
        """Run our function ``name`` on each (video ids, arguments), in one pipeline; replies in order."""
        function = f"m3tr_{name}_{self._tag}"
        commands = [["FCALL", function, len(ids), *map(video_prefix, ids), *arguments] for ids, arguments in calls]
        return await self._within(name, self._call(commands))

    async def clustered(self) -> bool:
        """Whether the server is part of a cluster, where a call may touch one video only."""
        if self._clustered is None:
            reply = await self.pipeline("info", [["INFO", "cluster"]])
            self._clustered = reply[0].get("cluster_enabled") == 1
        return self._clustered

    async def pipeline(self, name: str, commands: Sequence[Command]) -> list[Any]:
        """Run plain commands in one pipeline; replies in order."""
        return await self._within(name, self._send(commands))

    async def _within(self, name: str, work: Coroutine[Any, Any, T]) -> T:
        if self._silent and name != "ready":
            work.close()
            self._metrics.store_failures.labels(name).inc()
            raise Unavailable("the event store does not answer", part="store")
        started = time.perf_counter()
        try:
            async with asyncio.timeout(self._deadline_s):
                return await work
        except (RedisError, OSError, TimeoutError) as error:
            if isinstance(error, ResponseError) and "script: m3tr_" in str(error):
                raise
            if not isinstance(error, ResponseError):
                self._silent = True
                if self._asking is None or self._asking.done():
                    self._asking = asyncio.create_task(self._until_it_replies())
            self._metrics.store_failures.labels(name).inc()
            log.warning("store call failed", call=name, error=str(error) or type(error).__name__)
            raise Unavailable("the event store does not answer", part="store") from error
        finally:
            self._metrics.store_seconds.labels(name).observe(time.perf_counter() - started)

    async def _until_it_replies(self) -> None:
        while self._silent:
            with suppress(Unavailable):
                await self.ready()
                return
            await asyncio.sleep(RETRY_S)

    async def _check(self) -> None:
        if not await self._redis.function_list(library=f"m3tr_{self._tag}"):
            await self._load()

    async def _load(self) -> None:
        try:
            await self._redis.function_load(self._source)
        except ResponseError as error:
            if "already exists" not in str(error):
                raise

    async def _call(self, commands: Sequence[Command]) -> list[Any]:
        replies = await self._send(commands, partial=True)
        missing = [i for i, reply in enumerate(replies) if isinstance(reply, ResponseError) and _MISSING in str(reply)]
        if missing:
            # A server that came back empty, or another primary after a failover: nothing was executed yet.
            await self._load()
            for i, reply in zip(missing, await self._send([commands[i] for i in missing], partial=True), strict=True):
                replies[i] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise reply
        return replies

    async def _send(self, commands: Sequence[Command], *, partial: bool = False) -> list[Any]:
        async with self._redis.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)
            return await pipe.execute(raise_on_error=not partial)
