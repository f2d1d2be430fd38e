"""The network between the replicas and the real store: every message waits until the schedule decides what happens to it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Self

import redis
from redis.exceptions import ConnectionError, RedisError

from service.store.redis.failures import Unreached

Command = Sequence[Any]


class Delivery(Enum):
    """What happens to one message, a pipeline of commands on its way to the store."""

    PASS = "pass"
    LOST = "lost"
    """The connection breaks before the store receives anything."""
    UNHEARD = "unheard"
    """The store executes all commands, and the connection breaks before the reply."""
    TORN = "torn"
    """The store receives only the first commands of the pipeline, and the reply is lost."""


class Cut(Enum):
    """How a replica sees a partition."""

    REFUSED = "refused"
    """Every call fails at once."""
    SILENT = "silent"
    """Nothing comes back before the deadline; messages may still arrive after the partition."""


class Server:
    """The real store over one synchronous connection: a command is executed before the next line of the simulation."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._connection = self._client.connection_pool.get_connection()

    def execute(self, commands: Sequence[Command]) -> list[Any]:
        """The replies in order, errors as values."""
        self._connection.send_packed_command(self._connection.pack_commands(commands))
        return [self._reply(str(command[0])) for command in commands]

    def _reply(self, name: str) -> Any:
        try:
            reply = self._connection.read_response()
        except RedisError as error:
            return error
        understand = self._client.response_callbacks.get(name)
        return understand(reply) if understand else reply

    def close(self) -> None:
        self._connection.disconnect()
        self._client.close()


@dataclass(eq=False, slots=True)
class Message:
    """A pipeline under way; when ``answer`` is done, nobody waits for it (the sender has timed out, or crashed)."""

    replica: int
    commands: Sequence[Command]
    answer: asyncio.Future[list[Any]]


class Network:
    """Messages under way, in order of sending.

    ``failures`` counts the failures that each replica has seen. ``troubled``: replicas that have seen a failure and had no quiet
    period since. ``seen`` counts the deliveries, and messages that arrived when nobody waited for them.
    """

    def __init__(self, server: Server, seen: Counter[str]) -> None:
        self.server = server
        self._seen = seen
        self.pending: list[Message] = []
        self.cuts: dict[int, Cut] = {}
        self.failures: Counter[int] = Counter()
        self.troubled: set[int] = set()

    def fail(self, replica: int) -> None:
        """Note that a replica has seen a call fail."""
        self.failures[replica] += 1
        self.troubled.add(replica)

    async def send(self, replica: int, commands: Sequence[Command]) -> list[Any]:
        if self.cuts.get(replica) is Cut.REFUSED:
            self.fail(replica)
            raise Unreached("refused")
        message = Message(replica, commands, asyncio.get_running_loop().create_future())
        self.pending.append(message)
        try:
            return await message.answer
        except asyncio.CancelledError:
            self.fail(replica)
            raise

    def movable(self) -> list[Message]:
        """Messages that no partition blocks."""
        return [message for message in self.pending if message.replica not in self.cuts]

    def deliver(self, message: Message, delivery: Delivery, part: int = 0) -> None:
        """Deliver or lose a message; ``part`` chooses how much of a torn pipeline arrives."""
        self.pending.remove(message)
        if delivery is Delivery.PASS or delivery is Delivery.UNHEARD:
            arrived = message.commands
        else:
            arrived = message.commands[: part % len(message.commands)] if delivery is Delivery.TORN else ()
        replies = self.server.execute(arrived) if arrived else []
        self._seen[delivery.value] += 1
        if message.answer.done():
            self._seen["too late"] += len(arrived) > 0
            return
        if delivery is Delivery.PASS:
            message.answer.set_result(replies)
        else:
            self.fail(message.replica)
            message.answer.set_exception(ConnectionError(delivery.value))


class Client:
    """Replaces a backend's redis.asyncio client; everything is sent through the network."""

    def __init__(self, network: Network, replica: int) -> None:
        self._network = network
        self._replica = replica

    def pipeline(self, transaction: bool = True) -> _Pipeline:
        return _Pipeline(self._network, self._replica)

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        return await self._network.send(self._replica, commands)

    async def aclose(self) -> None:
        pass


def connect(backend: Any, client: Client) -> None:
    """Let a backend reach the store only through the network, over new connections too."""

    async def everywhere(commands: Sequence[Command], end: float) -> list[list[Any]]:
        try:
            async with asyncio.timeout_at(end):
                return [await client.send(commands)]
        except (RedisError, OSError, TimeoutError) as error:
            return [[error] * len(commands)]

    backend._redis = client
    backend.everywhere = everywhere


class _Pipeline:
    def __init__(self, network: Network, replica: int) -> None:
        self._network = network
        self._replica = replica
        self._commands: list[Command] = []

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        pass

    def execute_command(self, *command: Any) -> None:
        self._commands.append(command)

    async def execute(self, raise_on_error: bool = True) -> list[Any]:
        replies = await self._network.send(self._replica, self._commands)
        for reply in replies:
            if raise_on_error and isinstance(reply, Exception):
                raise reply
        return replies
