"""The store's library of Lua functions (``lua/``), and connections that can call these functions."""

from __future__ import annotations

from importlib import resources
from typing import Final

from model.engagement.bins import EDGES_US
from service.metrics import Metrics
from service.store.redis.connection import RedisConnection
from service.store.redis.function_library import FunctionLibrary

_FILES: Final = ("record", "rows", "plan", "apply", "read", "correct", "functions")
"""Files of the library in ``lua/``, in the order in which they are joined. The code in a file only uses code that comes before it."""


def library() -> FunctionLibrary:
    """Join the files of the Lua library, fill in the edges of the age bins, and return the library."""
    folder = resources.files("service.store") / "lua"
    template = "\n".join((folder / f"{name}.lua").read_text("utf-8") for name in _FILES)
    return FunctionLibrary.from_template(template.replace("@EDGES@", ",".join(map(str, EDGES_US.tolist()))))


def connect(url: str, metrics: Metrics, *, deadline_s: float, connections: int) -> RedisConnection:
    """Create a connection to the Redis deployment at ``url`` that can call the Lua functions. Nothing is sent yet.

    Raises:
        AddressError: if ``url`` is not a Redis address.
    """
    return RedisConnection(url, library(), metrics, deadline_s=deadline_s, connections=connections)
