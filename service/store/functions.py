"""The store's function library (``store.lua``), and connections that have it."""

from __future__ import annotations

from importlib import resources

from model.engagement.bins import EDGES_US
from service.metrics import Metrics
from service.store.redis.connection import RedisConnection
from service.store.redis.function_library import FunctionLibrary


def library() -> FunctionLibrary:
    """The functions of ``store.lua``, with the edges of the bins filled in."""
    template = resources.files("service.store").joinpath("store.lua").read_text("utf-8")
    return FunctionLibrary.from_template(template.replace("@EDGES@", ",".join(map(str, EDGES_US.tolist()))))


def connect(url: str, metrics: Metrics, *, deadline_s: float, connections: int) -> RedisConnection:
    """A connection to the deployment at ``url`` that can call the store's functions; nothing is sent yet.

    Raises:
        AddressError: ``url`` is not a Redis address.
    """
    return RedisConnection(url, library(), metrics, deadline_s=deadline_s, connections=connections)
