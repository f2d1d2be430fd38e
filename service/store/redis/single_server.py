"""One Redis server, reached by its address or through Sentinels: a pool of connections, and blocking readers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.connection import AbstractConnection
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from service.settings.redis_address import Address
from service.store.redis.checked_connections import Lifeline, SentinelPool, line_class
from service.store.redis.failures import NO_ANSWER, kind_of

Command = Sequence[str | bytes | int | float]

_SENTINEL_S: Final = 0.5
"""Seconds that one Sentinel has to answer; then the next is asked."""


def never_again() -> Retry:
    """No call is repeated by the client library."""
    return Retry(NoBackoff(), 0)


def common(deadline_s: float, name: str) -> dict[str, Any]:
    """Arguments of every connection."""
    return {
        "socket_timeout": deadline_s,
        "socket_connect_timeout": deadline_s,
        "retry": never_again(),
        "client_name": name,
        # With them on, redis-py 8 takes a closed connection for one that has something to tell.
        "maint_notifications_config": MaintNotificationsConfig(enabled=False),
    }


class Single:
    """A server that answers for every key; ``silent`` after a call that it did not reply to, until a probe is answered."""

    def __init__(self, address: Address, lifeline: Lifeline, *, deadline_s: float, connections: int) -> None:
        self._address, self._lifeline, self._deadline_s = address, lifeline, deadline_s
        self._sentinel: Sentinel | None = None
        if address.kind == "sentinel":
            seconds = min(_SENTINEL_S, deadline_s)
            given = {"username": address.sentinel_username, "password": address.sentinel_password}
            self._sentinel = Sentinel(
                address.hosts,
                sentinel_kwargs={
                    **common(seconds, "m3tr"),
                    **{name: value for name, value in given.items() if value},
                    **({"ssl": True, **address.tls_options} if address.tls else {}),
                },
            )
        self._pool = self._new_pool(connections, common(deadline_s, "m3tr"), deadline_s)
        self._redis = Redis(connection_pool=self._pool)
        self.silent = False

    def _new_pool(self, connections: int, options: dict[str, Any], wait_s: float) -> BlockingConnectionPool:
        address = self._address
        options = {
            **options,
            **address.credentials(),
            "db": address.db,
            "max_connections": connections,
            "timeout": wait_s,
            "connection_class": line_class(address, self._lifeline),
        }
        if self._sentinel is not None:
            return SentinelPool(  # type: ignore[no-untyped-call]
                service_name=address.master, sentinel_manager=self._sentinel, **options
            )
        if address.path is not None:
            return BlockingConnectionPool(path=address.path, **options)
        host, port = address.hosts[0]
        return BlockingConnectionPool(host=host, port=port, socket_keepalive=True, **options)

    def check_arguments(self) -> None:
        """Raise whatever the client library has against the address's options; nothing is connected."""
        self._pool.make_connection()

    async def close(self) -> None:
        """Drop every connection."""
        await self._redis.aclose()
        await self._pool.aclose()
        if self._sentinel is not None:
            await self._sentinel.aclose()

    async def send(self, commands: Sequence[Command], end: float) -> list[Any]:
        """Run commands in one pipeline; replies in order, an exception where the reply is one or is missing."""
        if self.silent:
            return [RedisSilent()] * len(commands)
        try:
            async with asyncio.timeout_at(end), self._redis.pipeline(transaction=False) as pipe:
                for command in commands:
                    pipe.execute_command(*command)
                return await pipe.execute(raise_on_error=False)
        except (RedisError, OSError, TimeoutError) as error:
            self.silent = self.silent or kind_of(error) in NO_ANSWER
            return [error] * len(commands)

    async def everywhere(self, commands: Sequence[Command], end: float) -> list[list[Any]]:
        """What each server says to the commands, asked over a new connection as a newcomer would make it."""
        line: AbstractConnection = self._pool.make_connection()
        replies: list[Any] = []
        try:
            async with asyncio.timeout_at(end):
                await line.connect()
                await line.send_packed_command(line.pack_commands(commands))
                for _ in commands:
                    try:
                        replies.append(await line.read_response())
                    except ResponseError as error:
                        replies.append(error)
        except (RedisError, OSError, TimeoutError) as error:
            replies += [error] * (len(commands) - len(replies))
        finally:
            await line.disconnect(nowait=True)
        return [replies]

    def heard(self) -> None:
        """A probe was answered: calls are sent again."""
        self.silent = False

    async def known_to_sentinels(self) -> bool | None:
        """Whether the Sentinels know the master's name; None: none of them answers."""
        assert self._sentinel is not None
        answered = False
        for one in self._sentinel.sentinels:
            with suppress(RedisError, OSError, TimeoutError):
                if self._address.master in await one.sentinel_masters():
                    return True
                answered = True
        return False if answered else None

    async def refresh(self) -> None:
        """Nothing to find out: each new connection looks the address up."""

    def reader(self, block_s: float) -> Any:
        """A client for blocking calls of up to ``block_s``."""
        return Redis(connection_pool=self._new_pool(2, reading(self._deadline_s, block_s), self._deadline_s))


def reading(deadline_s: float, block_s: float) -> dict[str, Any]:
    """Arguments of a blocking reader's connections."""
    options = common(deadline_s, "m3tr-reader")
    return {**options, "protocol": 2, "socket_timeout": block_s + deadline_s}


class RedisSilent(TimeoutError):
    """Not sent: the server has not replied to an earlier call, and nobody has heard of it since."""

    def __init__(self) -> None:
        super().__init__("not sent: an earlier call got no reply")
