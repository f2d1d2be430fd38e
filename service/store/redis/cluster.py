"""A Redis Cluster. Each command is sent to the node that holds its key. Each node can fail independently.

redis-py keeps the slot map and the connections. This module adds:

- One pipeline per node. All pipelines run at the same time, so a node that does not answer does not delay the other
  pipelines.
- Redirections (MOVED, ASK, TRYAGAIN). ASKING is sent on the same connection as its command. Calls of our Lua functions wait
  until their slot has moved.
- A new slot map as soon as a node reports one that differs from ours.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Final

from redis._parsers import AsyncCommandsParser
from redis.asyncio.cluster import ClusterNode, RedisCluster
from redis.cluster import get_node_name
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, RedisError, ResponseError, TryAgainError

from service.settings.redis_address import Address
from service.store.redis.checked_connections import ConnectionGeneration, connection_class
from service.store.redis.failures import CLOSED, NO_ANSWER, kind_of
from service.store.redis.single_server import Command, RedisSilent, connection_options, no_retry, reader_options

_REDIRECTIONS: Final = 8
"""Maximum number of MOVED redirections that are followed in one call."""
_TRY_AGAIN_S: Final = 0.05
_MAP_S: Final = 0.5
"""Time limit in seconds for the nodes to report their slot map."""

SlotMap = dict[tuple[int, int], str]
"""The name of the primary of each span of slots. A span is its first and its last slot."""


class _Keys(AsyncCommandsParser):
    """Finds a command's key without asking a node, because the node may be down."""

    async def initialize(self, node: Any | None = None) -> None:
        """Do nothing. Only our own commands are sent, and ``key_of`` knows them."""

    async def get_keys(self, *args: Any) -> tuple[Any, ...] | None:
        """Return the key that decides which node a command is sent to, as a tuple. Return None if the command has no key."""
        key = key_of(args)
        return None if key is None else (key,)


class Cluster:
    """The client of a cluster.

    ``silent_nodes``: names of the nodes that did not reply to a call, and have not replied to a probe since then.
    """

    def __init__(
        self, address: Address, generation: ConnectionGeneration, *, deadline_s: float, connections: int
    ) -> None:
        self._address, self._generation = address, generation
        self._deadline_s, self._connections = deadline_s, connections
        self._redis = self._new(connection_options(deadline_s, "m3tr"))
        self._slots: dict[str, asyncio.Semaphore] = {}
        """Per node, a limit on the number of calls at the same time."""
        self._unmapped: dict[str, ClusterNode] = {}
        self.silent_nodes: set[str] = set()

    @property
    def silent(self) -> bool:
        """Whether at least one node does not answer."""
        return bool(self.silent_nodes)

    def _new(self, options: dict[str, Any]) -> RedisCluster:
        address = self._address
        client = RedisCluster(
            startup_nodes=[ClusterNode(host, port) for host, port in address.hosts],
            **{**options, **address.credentials()},
            ssl=address.tls,
            # Calls use up to ``connections`` connections. The others are for redirections and probes.
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
        """Raise redis-py's own error unless redis-py accepts the options. No connection is made."""
        node = next(iter(self._redis.nodes_manager.startup_nodes.values()))
        node.connection_class(**{**node.connection_kwargs, "retry": no_retry()})

    async def close(self) -> None:
        """Drop every connection."""
        for node in self._unmapped.values():
            await node.disconnect()
        await self._redis.aclose()

    async def send(self, commands: Sequence[Command], end: float) -> list[Any]:
        """Run each command on its node until ``end`` (loop time). Return the replies in order.

        An exception takes the place of a reply that is an error or is missing.
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
        """Run the commands on each primary. Return one list of replies per primary."""
        try:
            async with asyncio.timeout_at(end):
                await self._redis.initialize()
        except (RedisError, OSError, TimeoutError) as error:
            return [[error] * len(commands)]
        nodes = self._redis.get_primaries()
        return list(await asyncio.gather(*(self._ask(node, commands, end, probe=True) for node in nodes)))

    def note_answer(self) -> None:
        """Do nothing. The nodes that answer are recorded during each probe."""

    async def refresh(self) -> None:
        """Ask the nodes for their slot map. If a reply differs from the map in use, fetch the map again.

        The nodes learn of a change one after another, and the map may be fetched from a node that has not learned of it
        yet. The next refresh notices this, because it compares with the map in use.
        """
        end = asyncio.get_running_loop().time() + min(_MAP_S, self._deadline_s)
        nodes = self._redis.get_nodes()
        asked = [node for node in nodes if str(node.name) not in self.silent_nodes] or nodes
        asks = [asyncio.create_task(self._reported_map(node, end)) for node in asked]
        last: SlotMap | None = None
        try:
            for ask in asyncio.as_completed(asks):
                # Most nodes report the same map, which is compared with the one in use only once.
                if (reported := await ask) is None or reported == last:
                    continue
                last = reported
                if self._differs(reported):
                    # redis-py asks the node with this name last.
                    silent = next(iter(self.silent_nodes), None)
                    await self._redis.nodes_manager.initialize(last_failed_node_name=silent)
                    break
            if last is None:
                # No known node answers. Start again with the nodes in the address.
                options = connection_options(self._deadline_s, "m3tr")
                old, self._redis = self._redis, self._new(options)
                await old.aclose()
        finally:
            for ask in asks:
                ask.cancel()
            await asyncio.gather(*asks, return_exceptions=True)
        self.silent_nodes &= {str(node.name) for node in self._redis.get_primaries()}

    async def _reported_map(self, node: ClusterNode, end: float) -> SlotMap | None:
        """Return the slot map that a node reports, or None if it does not answer."""
        slots = (await self._ask(node, [["CLUSTER SLOTS"]], end, probe=True))[0]
        if isinstance(slots, Exception):
            return None
        found: SlotMap = {}
        for first, last, (host, port, *_), *_ in slots:
            # A node that does not know its own address reports an empty one.
            found[first, last] = get_node_name(host.decode() if host else node.host, port)
        return found

    def _differs(self, reported: SlotMap) -> bool:
        """Return whether a slot has another primary in ``reported`` than in the map in use."""
        ours = self._redis.nodes_manager.slots_cache
        return any(
            slot not in ours or ours[slot][0].name != name
            for (first, last), name in reported.items()
            for slot in range(first, last + 1)
        )

    def reader(self, block_s: float) -> Any:
        """Create a client for blocking calls of up to ``block_s`` seconds."""
        return self._new(reader_options(self._deadline_s, block_s))

    @property
    def primaries(self) -> list[ClusterNode]:
        """The nodes that accept writes, sorted by name."""
        return sorted(self._redis.get_primaries(), key=lambda node: str(node.name))

    async def ask(self, node: ClusterNode, commands: Sequence[Command], end: float) -> list[Any]:
        """Run commands on one node. Return the replies as ``send`` does."""
        return await self._ask(node, commands, end)

    def _node_of(self, command: Command) -> ClusterNode:
        key = key_of(command)
        if key is None:
            return self.primaries[0]
        return self._redis.nodes_manager.get_node_from_slot(key_slot(key if isinstance(key, bytes) else key.encode()))

    def _node_at(self, host: str, port: int) -> ClusterNode:
        node = self._redis.get_node(host=host, port=port)
        if node is None:
            # A node without slots is not on the slot map.
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
    """Return whether a command calls one of our Lua functions. A function uses more keys than the call names.

    A call only names a prefix, and no key with this exact name exists. As soon as the slot begins to move, the old node therefore
    redirects the call. The video's keys may still be on either node at that time. So the call must wait until the slot has moved.
    """
    return command[0] == "FCALL"


def key_of(command: Command) -> str | bytes | None:
    """Return the first key of a command, or None if it has no key. All keys of a command are in the same slot."""
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
