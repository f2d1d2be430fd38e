"""The Redis deployment behind ``REDIS_URL``, whatever its form: the one object through which everything here reaches it.

    RedisConnection send --------+              +-- Single: a server, by its address or through Sentinels
    ChangeSubscriber reader ------+--- Server ---+
    Consumer ---- reader ------+              +-- Shards: a cluster, also where the URL names one of its nodes

A plain URL that leads to a node of a cluster is found out by asking, before the first call.
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
from service.store.redis.checked_connections import Lifeline
from service.store.redis.cluster import Shards
from service.store.redis.failures import ELSEWHERE, NO_ANSWER, kind_of
from service.store.redis.single_server import Command, Single

log = structlog.get_logger(__name__)

_CUT_S: Final = 0.5
"""Seconds between two times that readers are interrupted because of what a call met, at least."""


class Server:
    """Connections to a deployment.

    Raises:
        AddressError: ``url`` is none; the message shows nothing of it.
    """

    def __init__(self, url: str, *, deadline_s: float, connections: int = 2) -> None:
        self.address = parse_address(url)
        self._deadline_s, self._connections = deadline_s, connections
        self._lifeline = Lifeline()
        self._readers: list[Any] = []
        self._cut_at = float("-inf")
        self._clustered: bool | None = {"sentinel": False, "cluster": True}.get(self.address.kind)
        self._looking = asyncio.Lock()
        try:
            self.backend = self._backend(self.address)
            self.backend.check_arguments()
        except (TypeError, ValueError, OSError, RedisError) as error:
            raise AddressError(f"an option after ? is not accepted ({type(error).__name__})") from None
        if self.address.ignored:
            log.warning("options of REDIS_URL have no effect", options=self.address.ignored)

    def _backend(self, address: Address) -> Single | Shards:
        kind = Shards if address.kind == "cluster" else Single
        return kind(address, self._lifeline, deadline_s=self._deadline_s, connections=self._connections)

    async def clustered(self) -> bool:
        """Whether a call may touch one slot only; raises what the library does when nobody answers that."""
        if self._clustered is None:
            end = asyncio.get_running_loop().time() + self._deadline_s
            async with self._looking:
                if self._clustered is None:
                    await self._look(end)
        return bool(self._clustered)

    @property
    def known_clustered(self) -> bool | None:
        """What ``clustered`` found out, None before that."""
        return self._clustered

    @property
    def is_cluster(self) -> bool:
        """What ``clustered`` found out, False before that."""
        return bool(self._clustered)

    async def _look(self, end: float) -> None:
        reply = (await self.backend.send([["INFO", "cluster"]], end))[0]
        if isinstance(reply, Exception):
            if kind_of(reply) != "NOPERM":
                raise reply
            reply = {}
        clustered = str(reply.get("cluster_enabled", 0)) == "1"
        if clustered and self.address.hosts and isinstance(self.backend, Single):
            log.info("REDIS_URL leads to a node of a cluster, which is served as one")
            old, self.backend = self.backend, self._backend(replace(self.address, kind="cluster", db=0))
            await old.close()
        self._clustered = clustered

    async def send(self, commands: Sequence[Command], end: float) -> list[Any]:
        """Run commands, in one pipeline a server, until ``end`` (loop time); replies in order.

        An exception stands where a reply is one, or is missing; none of a command that may have been executed is repeated.
        """
        if self._clustered is None:
            try:
                await self.clustered()
            except (RedisError, OSError, TimeoutError) as error:
                return [error] * len(commands)
        return await self.backend.send(commands, end)

    async def everywhere(self, commands: Sequence[Command], end: float) -> list[list[Any]]:
        """What each server that takes writes says to the commands."""
        if self._clustered is None:
            with suppress(RedisError, OSError, TimeoutError):
                await self.clustered()
        return await self.backend.everywhere(commands, end)

    async def scan(self, place: str, pattern: str, count: int, end: float) -> tuple[str, list[bytes]]:
        """Some names of keys and the next place, "" at the end; the first is "". Goes through all servers, one after another."""
        at, _, name = place.rpartition("@")
        command: Command = ["SCAN", at or 0, "MATCH", pattern, "COUNT", count]
        if not await self.clustered() or isinstance(self.backend, Single):
            reply = (await self.backend.send([command], end))[0]
            rest: list[str] = []
        else:
            await self.backend.everywhere([["PING"]], end)
            nodes = {str(node.name): node for node in self.backend.primaries}
            # A node that is gone by now has left its slots to others, which come later or come again next time.
            name = name if name in nodes else next((one for one in nodes if one > name), "")
            if not name:
                return "", []
            rest = [one for one in nodes if one > name]
            reply = (await self.backend.ask(nodes[name], [command], end))[0]
        if isinstance(reply, Exception):
            raise reply
        cursor = int(reply[0])
        if cursor:
            return f"{cursor}@{name}", list(reply[1])
        return (f"0@{rest[0]}" if rest else ""), list(reply[1])

    @property
    def silent(self) -> bool:
        """Whether calls are not sent at present, as an earlier one got no reply."""
        return self.backend.silent

    def heard(self) -> None:
        """A probe was answered."""
        self.backend.heard()

    async def check_sentinels(self) -> None:
        """Raise AddressError unless a Sentinel knows the name of the master, whether that answers at present or not."""
        if self.address.kind == "sentinel" and isinstance(self.backend, Single):
            known = await self.backend.known_to_sentinels()
            if known is None:
                raise AddressError("none of its Sentinels answers")
            if not known:
                raise AddressError("its Sentinels know no master of the name that it gives")

    async def refresh(self) -> None:
        """Look again who the servers are."""
        await self.backend.refresh()

    async def look_again(self) -> None:
        """A server that was none of a cluster redirects us: ask it anew."""
        if self.address.kind == "server" and isinstance(self.backend, Single):
            self._clustered = None

    @property
    def generation(self) -> int:
        """Number of times that all connections were dropped."""
        return self._lifeline.generation

    async def cut(self, generation: int | None = None) -> None:
        """Use no connection any more that there is: the primary is another server by now.

        ``generation``: what it was when a call was sent that says so; nothing is done when they were dropped since.
        """
        if generation is not None and generation != self._lifeline.generation:
            return
        self._lifeline.cut()
        await self.refresh()
        now = asyncio.get_running_loop().time()
        if generation is None or now - self._cut_at >= _CUT_S:
            self._cut_at = now
            for reader in list(self._readers):
                with suppress(RedisError, OSError, TimeoutError):
                    await interrupt(reader)

    async def reader(self, block_s: float) -> Any:
        """A client for blocking reads (``Redis`` or ``RedisCluster``); ``cut`` ends what it waits for.

        Any, because the library's own types of stream replies say less than protocol 2 guarantees, and differ by release.
        """
        await self.clustered()
        reader = self.backend.reader(block_s)
        self._readers.append(reader)
        return reader

    async def dismiss(self, reader: Any) -> None:
        """Close a reader."""
        self._readers.remove(reader)
        with suppress(RedisError, OSError, TimeoutError):
            await interrupt(reader)
            await reader.aclose()

    async def failed(self, error: BaseException, generation: int) -> str:
        """Told by a reader of what it met; drops connections that lead to the wrong server. The kind of the error."""
        kind = kind_of(error)
        if kind in ELSEWHERE:
            await self.cut(generation)
        elif kind == "MOVED":
            await self.look_again()
        elif kind in NO_ANSWER or kind in ("CLUSTERDOWN", "SLOTS"):
            with suppress(RedisError, OSError, TimeoutError):
                await self.refresh()
        return kind

    async def close(self) -> None:
        """Drop every connection."""
        for reader in list(self._readers):
            await self.dismiss(reader)
        await self.backend.close()


async def interrupt(reader: Any) -> None:
    """Close a reader's connections, those that wait included."""
    pool = getattr(reader, "connection_pool", None)
    if pool is not None:
        await pool.disconnect()
    else:
        await reader.aclose()
