"""The Redis deployment at ``REDIS_URL``: one server, a primary with Sentinels, or a cluster. All access to Redis uses ``Server``.

    RedisConnection   send   ---+            +-- SingleServer: one server, by its address or through Sentinels
    ChangeSubscriber  reader ---+-- Server --+
    Consumer          reader ---+            +-- Cluster: also if the URL names only one of its nodes

If the URL names a single server, the server is asked before the first call whether it is a node of a cluster.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

import structlog
from redis.exceptions import RedisError

from service.settings.redis_address import Address, AddressError, parse_address
from service.store.redis.checked_connections import ConnectionGeneration
from service.store.redis.cluster import Cluster
from service.store.redis.failures import ELSEWHERE, NO_ANSWER, kind_of
from service.store.redis.single_server import Command, SingleServer

log = structlog.get_logger(__name__)

_INTERRUPT_S: Final = 0.5
"""Minimum time in seconds between two interruptions of the readers that are caused by failed calls."""


class Server:
    """All connections to one deployment.

    Raises:
        AddressError: if ``url`` is not a Redis address. The message shows no part of the URL.
    """

    def __init__(self, url: str, *, deadline_s: float, connections: int = 2) -> None:
        self.address = parse_address(url)
        self._deadline_s, self._connections = deadline_s, connections
        self._connection_generation = ConnectionGeneration()
        self._readers: list[Any] = []
        self._interrupted_at = float("-inf")
        self._clustered: bool | None = {"sentinel": False, "cluster": True}.get(self.address.kind)
        self._asking = asyncio.Lock()
        try:
            self.backend = self._backend(self.address)
            self.backend.check_arguments()
        except (TypeError, ValueError, OSError, RedisError) as error:
            raise AddressError(f"an option after ? is not accepted ({type(error).__name__})") from None
        if self.address.ignored:
            log.warning("options of REDIS_URL have no effect", options=self.address.ignored)

    def _backend(self, address: Address) -> SingleServer | Cluster:
        kind = Cluster if address.kind == "cluster" else SingleServer
        generation, deadline_s = self._connection_generation, self._deadline_s
        return kind(address, generation, deadline_s=deadline_s, connections=self._connections)

    async def clustered(self) -> bool:
        """Return whether the deployment is a cluster. In a cluster, one call may only use keys of one slot.

        Raise redis-py's error if no server answers.
        """
        if self._clustered is None:
            end = asyncio.get_running_loop().time() + self._deadline_s
            async with self._asking:
                if self._clustered is None:
                    await self._ask(end)
        return bool(self._clustered)

    @property
    def known_clustered(self) -> bool | None:
        """The result of ``clustered``, or None if it is not known yet."""
        return self._clustered

    @property
    def is_cluster(self) -> bool:
        """The result of ``clustered``, or False if it is not known yet."""
        return bool(self._clustered)

    async def _ask(self, end: float) -> None:
        reply = (await self.backend.send([["INFO", "cluster"]], end))[0]
        if isinstance(reply, Exception):
            if kind_of(reply) != "NOPERM":
                raise reply
            reply = {}
        clustered = str(reply.get("cluster_enabled", 0)) == "1"
        if clustered and self.address.hosts and isinstance(self.backend, SingleServer):
            log.info("REDIS_URL names a node of a cluster, so the whole cluster is used")
            old, self.backend = self.backend, self._backend(replace(self.address, kind="cluster", db=0))
            await old.close()
        self._clustered = clustered

    async def send(self, commands: Sequence[Command], end: float) -> list[Any]:
        """Run commands until ``end`` (loop time), in one pipeline per server. Return the replies in order.

        An exception takes the place of a reply that is an error or is missing. A command that may have been executed is not repeated.
        """
        if self._clustered is None:
            try:
                await self.clustered()
            except (RedisError, OSError, TimeoutError) as error:
                return [error] * len(commands)
        return await self.backend.send(commands, end)

    async def everywhere(self, commands: Sequence[Command], end: float) -> list[list[Any]]:
        """Run the commands on each server that accepts writes. Return one list of replies per server."""
        if self._clustered is None:
            with suppress(RedisError, OSError, TimeoutError):
                await self.clustered()
        return await self.backend.everywhere(commands, end)

    async def scan(self, position: str, pattern: str, count: int, end: float) -> tuple[str, list[bytes]]:
        """Return the position to continue from, and some of the keys that match ``pattern``.

        The position "" starts a scan. If the returned position is "", the scan has ended. In a cluster, the servers are scanned one after
        the other, and a position is ``cursor@node``.
        """
        at, _, name = position.rpartition("@")
        command: Command = ["SCAN", at or 0, "MATCH", pattern, "COUNT", count]
        if not await self.clustered() or isinstance(self.backend, SingleServer):
            reply = (await self.backend.send([command], end))[0]
            rest: list[str] = []
        else:
            await self.backend.everywhere([["PING"]], end)
            nodes = {str(node.name): node for node in self.backend.primaries}
            # If the node is gone, different nodes now have its slots. Those nodes are scanned later, or in the next scan.
            name = name if name in nodes else next((other for other in nodes if other > name), "")
            if not name:
                return "", []
            rest = [other for other in nodes if other > name]
            reply = (await self.backend.ask(nodes[name], [command], end))[0]
        if isinstance(reply, Exception):
            raise reply
        cursor = int(reply[0])
        if cursor:
            return f"{cursor}@{name}", list(reply[1])
        return (f"0@{rest[0]}" if rest else ""), list(reply[1])

    @property
    def silent(self) -> bool:
        """Whether a call got no reply. Further calls are not sent until a probe is answered."""
        return self.backend.silent

    def note_answer(self) -> None:
        """Record that a probe was answered, so calls are sent again."""
        self.backend.note_answer()

    async def check_sentinels(self) -> None:
        """Raise AddressError unless a Sentinel knows the name of the master. The master itself need not answer."""
        if self.address.kind == "sentinel" and isinstance(self.backend, SingleServer):
            known = await self.backend.known_to_sentinels()
            if known is None:
                raise AddressError("none of its Sentinels answers")
            if not known:
                raise AddressError("its Sentinels do not know a master with this name")

    async def refresh(self) -> None:
        """Find out which servers the deployment has now."""
        await self.backend.refresh()

    async def recheck_cluster(self) -> None:
        """Before the next call, ask the server again whether it is part of a cluster.

        This is needed if a server that was not part of a cluster now redirects calls.
        """
        if self.address.kind == "server" and isinstance(self.backend, SingleServer):
            self._clustered = None

    @property
    def generation(self) -> int:
        """The number of times that all connections were dropped."""
        return self._connection_generation.generation

    async def drop_connections(self, generation: int | None = None) -> None:
        """Stop using all present connections, because a different server is now the primary.

        ``generation``: the value of ``self.generation`` when a failed call was sent, or None if no call failed. If connections were
        dropped after that call was sent, nothing is done.
        """
        if generation is not None and generation != self._connection_generation.generation:
            return
        self._connection_generation.advance()
        await self.refresh()
        now = asyncio.get_running_loop().time()
        if generation is None or now - self._interrupted_at >= _INTERRUPT_S:
            self._interrupted_at = now
            for reader in list(self._readers):
                with suppress(RedisError, OSError, TimeoutError):
                    await interrupt(reader)

    async def reader(self, block_s: float) -> Any:
        """Create a client for blocking reads, a ``Redis`` or a ``RedisCluster``. ``drop_connections`` interrupts its reads.

        The return type is Any, because redis-py's types for stream replies are less precise than the replies of protocol 2,
        and differ between releases.
        """
        await self.clustered()
        reader = self.backend.reader(block_s)
        self._readers.append(reader)
        return reader

    async def close_reader(self, reader: Any) -> None:
        """Close a client that ``reader`` returned."""
        self._readers.remove(reader)
        with suppress(RedisError, OSError, TimeoutError):
            await interrupt(reader)
            await reader.aclose()

    async def failed(self, error: BaseException, generation: int) -> str:
        """React to a reader's error, for example by dropping connections to the wrong server. Return the kind of the error."""
        kind = kind_of(error)
        if kind in ELSEWHERE:
            await self.drop_connections(generation)
        elif kind == "MOVED":
            await self.recheck_cluster()
        elif kind in NO_ANSWER or kind in ("CLUSTERDOWN", "SLOTS"):
            with suppress(RedisError, OSError, TimeoutError):
                await self.refresh()
        return kind

    async def close(self) -> None:
        """Drop every connection."""
        for reader in list(self._readers):
            await self.close_reader(reader)
        await self.backend.close()


async def interrupt(reader: Any) -> None:
    """Close a reader's connections, including those with a read under way."""
    pool = getattr(reader, "connection_pool", None)
    if pool is not None:
        await pool.disconnect()
    else:
        await reader.aclose()
