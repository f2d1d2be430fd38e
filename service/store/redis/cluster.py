"""A Redis Cluster: each command goes to the node that holds its key, and each node can fail on its own.

redis-py keeps the slot map and the connections. This module adds:

- one pipeline for each node, all at the same time, so that a node that does not answer does not delay the others;
- redirections (MOVED, ASK, TRYAGAIN), with ASKING on the same connection as its command; calls of our functions wait until
  their slot has moved;
- a new slot map as soon as a node reports one that differs from ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis._parsers import AsyncCommandsParser
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError, TryAgainError

from service.settings.redis_address import Address
from service.store.redis.checked_connections import ConnectionGeneration, connection_class
from service.store.redis.failures import CLOSED, NO_ANSWER, kind_of
from service.store.redis.single_server import Command, RedisSilent, connection_options, no_retry, reader_options

_REDIRECTIONS: Final = 8
"""How often one command may be redirected."""
_TRY_AGAIN_S: Final = 0.05
_MAP_S: Final = 0.5
"""Seconds that the nodes have to report their slot map; the first answer is taken."""


class _Keys(AsyncCommandsParser):
    """Finds a command's key without asking a node, which may be down."""

    async def initialize(self, node: Any | None = None) -> None:
        """Do nothing: only our own commands are sent, and ``key_of`` knows them."""

    async def get_keys(self, *args: Any) -> tuple[Any, ...] | None:
        """The key that decides which node a command goes to."""
        key = key_of(args)
        return None if key is None else (key,)


class Cluster:
    """The client of a cluster; ``silent_nodes``: those that did not reply to a call, and to no probe since."""

    def __init__(
        self, address: Address, generation: ConnectionGeneration, *, deadline_s: float, connections: int
    ) -> None:
        self._address, self._generation = address, generation
        self._deadline_s, self._connections = deadline_s, connections
        self._redis = self._new(connection_options(deadline_s, "m3tr"))
        self._slots: dict[str, asyncio.Semaphore] = {}
        """Limits the calls under way, by node."""
        self._unmapped: dict[str, ClusterNode] = {}
        self._map: Any = None
        self.silent_nodes: set[str] = set()

    @property
    def silent(self) -> bool:
        """Whether a node does not answer."""
        return bool(self.silent_nodes)

    def _new(self, options: dict[str, Any]) -> RedisCluster:
        address = self._address
        client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            **{**options, **address.credentials()},
            ssl=address.tls,
            # Calls wait for one of ``connections``; the others are for redirections and probes.
            max_connections=2 * self._connections + 8,
            require_full_coverage=False,
        )
        client.commands_parser = _Keys()
        kind: Any = connection_class(address, self._generation)
        client.connection_kwargs["connection_class"] = kind
        for node in client.nodes_manager.startup_nodes.values():
            node.connection_class = kind
        return client

    def check_arguments(self) -> None:
        """Raise what redis-py raises for options that it does not accept; nothing is connected."""
        node = next(iter(self._redis.nodes_manager.startup_nodes.values()))
        node.connection_class(**{**node.connection_kwargs, "retry": no_retry()})

    async def close(self) -> None:
        """Drop every connection."""
        for node in self._unmapped.values():
            await node.disconnect()
        await self._redis.aclose()

    async def send(self, commands: Sequence[Command], end: float) -> list[Any]:
        """Run each command on its node until ``end`` (loop time); replies in order.

        An exception stands where a reply is one, or is missing.
        """
        replies: list[Any] = [None] * len(commands)
        waiting: dict[int, ClusterNode | None] = dict.fromkeys(range(len(commands)))
        try:
            async with asyncio.timeout_at(end):
                await self._redis.initialize()
        except (RedisError, OSError, TimeoutError) as error:
            return [error] * len(commands)
        moved = 0
        while waiting and moved < _REDIRECTIONS and asyncio.get_running_loop().time() < end:
            groups: dict[tuple[ClusterNode, bool], list[int]] = {}
            for i, asked in waiting.items():
                try:
                    groups.setdefault((asked or self._node_of(commands[i]), asked is not None), []).append(i)
                except (RedisError, OSError) as error:
                    replies[i] = error
            asks = [self._ask(n, [commands[i] for i in at], end, asking=a) for (n, a), at in groups.items()]
            answers = [await asks[0]] if len(asks) == 1 else await asyncio.gather(*asks)
            for group, answer in zip(groups.values(), answers, strict=True):
                for i, reply in zip(group, answer, strict=True):
                    replies[i] = reply
            waiting, wait = {}, False
            for i in (i for group in groups.values() for i in group):
                reply = replies[i]
                if type(reply) is MovedError:
                    await self._redis.nodes_manager.move_slot(reply)
                    moved += 1
                    waiting[i] = None
                elif type(reply) is AskError and not _on_many_keys(commands[i]):
                    waiting[i] = self._node_at(reply.host, reply.port)
                elif isinstance(reply, (AskError, TryAgainError)):
                    waiting[i], wait = None, True
            if wait:
                await asyncio.sleep(_TRY_AGAIN_S)
        return replies

    async def everywhere(self, commands: Sequence[Command], end: float) -> list[list[Any]]:
        """The replies of each primary to the commands."""
        try:
            async with asyncio.timeout_at(end):
                await self._redis.initialize()
        except (RedisError, OSError, TimeoutError) as error:
            return [[error] * len(commands)]
        nodes = self._redis.get_primaries()
        return list(await asyncio.gather(*(self._ask(node, commands, end, probe=True) for node in nodes)))

    def note_answer(self) -> None:
        """Do nothing: a probe notes for each node whether it answers."""

    async def refresh(self) -> None:
        """Take the slot map of the first node that answers, where it differs from ours."""
        end = asyncio.get_running_loop().time() + min(_MAP_S, self._deadline_s)
        asks = [
            asyncio.create_task(self._ask(node, [["CLUSTER SLOTS"]], end, probe=True))
            for node in self._redis.get_nodes()
        ]
        try:
            for ask in asyncio.as_completed(asks):
                slots = (await ask)[0]
                if not isinstance(slots, Exception):
                    await self._take_map(slots)
                    break
            else:
                # No known node answers: start again with the nodes of the address.
                options = connection_options(self._deadline_s, "m3tr")
                old, self._redis, self._map = self._redis, self._new(options), None
                await old.aclose()
        finally:
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        self.silent_nodes &= {str(node.name) for node in self._redis.get_primaries()}

    async def _take_map(self, slots: Any) -> None:
        if slots == self._map:
            return
        # redis-py asks a silent node last.
        silent = next(iter(self.silent_nodes), None)
        await self._redis.nodes_manager.initialize(last_failed_node_name=silent)
        self._map = slots

    def reader(self, block_s: float) -> Any:
        """A client for blocking calls of up to ``block_s`` seconds."""
        return self._new(reader_options(self._deadline_s, block_s))

    @property
    def primaries(self) -> list[ClusterNode]:
        """The nodes that take writes, in a fixed order."""
        return sorted(self._redis.get_primaries(), key=lambda node: str(node.name))

    async def ask(self, node: ClusterNode, commands: Sequence[Command], end: float) -> list[Any]:
        """Run commands on one node."""
        return await self._ask(node, commands, end)

    def _node_of(self, command: Command) -> ClusterNode:
        key = key_of(command)
        if key is None:
            return self.primaries[0]
        return self._redis.nodes_manager.get_node_from_slot(key_slot(key if isinstance(key, bytes) else key.encode()))

    def _node_at(self, host: str, port: int) -> ClusterNode:
        node = self._redis.get_node(host=host, port=port)
        if node is None:
            # A node that has no slot yet is not on the map.
            name = f"{host}:{port}"
            node = self._unmapped.get(name)
            if node is None:
                node = self._unmapped[name] = ClusterNode(host, port, **self._redis.connection_kwargs)
        return node

    async def _ask(
        self, node: ClusterNode, commands: Sequence[Command], end: float, *, asking: bool = False, probe: bool = False
    ) -> list[Any]:
        name = str(node.name)
        if name in self.silent_nodes and not probe:
            return [RedisSilent()] * len(commands)
        try:
            async with asyncio.timeout_at(end), self._slots.setdefault(name, asyncio.Semaphore(self._connections)):
                pipe = self._redis.pipeline()
                for command in commands:
                    if asking:
                        pipe.execute_command("ASKING", target_nodes=node)
                    pipe.execute_command(*command, target_nodes=node)
                replies = await pipe.execute(raise_on_error=False, allow_redirections=False)
                replies = replies[1::2] if asking else replies
        except (RedisError, OSError, TimeoutError) as error:
            replies = [error] * len(commands)
        lost = next((r for r in replies if isinstance(r, Exception) and not isinstance(r, ResponseError)), None)
        if lost is None or kind_of(lost) not in (*NO_ANSWER, CLOSED):
            self.silent_nodes.discard(name)
        elif kind_of(lost) in NO_ANSWER:
            self.silent_nodes.add(name)
        return replies


def _on_many_keys(command: Command) -> bool:
    """Whether a command calls one of our functions, which touch more keys of the slot than they name.

    The key that is named, a prefix, never exists. So the old node redirects the call as soon as the slot begins to move, while
    the video's keys may still be on either node. Such a call waits until the slot has moved.
    """
    return command[0] == "FCALL"


def key_of(command: Command) -> str | bytes | None:
    """The first key of a command, None where it has none; all keys of a command share their slot."""
    name = str(command[0]).upper()
    if name in ("FCALL", "FCALL_RO", "EVAL", "EVALSHA"):
        return _text(command[3]) if int(command[2]) else None
    if name in ("XREAD", "XREADGROUP"):
        words = [_text(word) for word in command]
        at = next(i for i, word in enumerate(words) if word in (b"STREAMS", "STREAMS"))
        return words[at + 1]
    if name in ("INFO", "PING", "TIME", "SCAN", "CONFIG") or len(command) < 2:
        return None
    return _text(command[1])


def _text(key: str | bytes | int | float) -> str | bytes:
    return key if isinstance(key, (str, bytes)) else str(key)
