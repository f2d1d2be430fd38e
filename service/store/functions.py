"""The store's function library (``store.lua``), and connections that can call its functions."""

from __future__ import annotations

from importlib import resources

from model.engagement.bins import EDGES_US
from service.metrics import Metrics
from service.store.redis.connection import RedisConnection
from service.store.redis.function_library import FunctionLibrary


def library() -> FunctionLibrary:
    """Load the function library from ``store.lua`` and fill in the edges of the age bins."""
    template = resources.files("service.store").joinpath("store.lua").read_text("utf-8")
    return FunctionLibrary.from_template(template.replace("@EDGES@", ",".join(map(str, EDGES_US.tolist()))))


def connect(url: str, metrics: Metrics, *, deadline_s: float, connections: int) -> RedisConnection:
    """Create a connection to the Redis deployment at ``url`` that can call the store's functions. Nothing is sent yet.

    Raises:
        AddressError: if ``url`` is not a Redis address.
    """
    return RedisConnection(url, library(), metrics, deadline_s=deadline_s, connections=connections)
