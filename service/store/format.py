"""The version of the store's format, and the version of the bins that ages fall into.

``m3tr:format`` holds both, as JSON. A store without this key has format 1 and bins 1, and the key is written. A store of a newer
release is refused, at the start and by the export: this release would read it wrongly, and would write what the newer one cannot
read. A record of a newer format begins with its format as text, and is refused by itself (``store.lua``). A release with a new
format says how it reads the older one, or names the command that migrates it; so far there is only one format.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Final

import msgspec

from model.engagement.bins import BINS_VERSION
from model.errors import M3TRError
from service.metrics import Metrics
from service.problems import Unavailable
from service.settings import StoreSettings
from service.store import keys
from service.store.functions import connect
from service.store.redis.connection import RedisConnection

FORMAT: Final = 1


class Format(msgspec.Struct, frozen=True):
    """Versions of a store's format and bins."""

    format: int
    bins: int


OURS: Final = Format(FORMAT, BINS_VERSION)


class FormatError(M3TRError):
    """The store has another format; the message says which."""


async def check_format(connection: RedisConnection) -> None:
    """Write the format into a store that has none yet, and refuse a store with another one.

    Raises:
        FormatError: the store has another format, or other bins.
        Unavailable: the store does not answer, or takes no writes.
    """
    found = (await connection.pipeline("format", [["GET", keys.FORMAT]]))[0]
    if found is None:
        await connection.pipeline("format", [["SET", keys.FORMAT, msgspec.json.encode(OURS), "NX"]])
        found = (await connection.pipeline("format", [["GET", keys.FORMAT]]))[0]
    try:
        stored = msgspec.json.decode(found or b"", type=Format)
    except (msgspec.MsgspecError, UnicodeError):
        raise FormatError(f"{keys.FORMAT}: {found!r} cannot be read; allowed is JSON like {_text(OURS)}") from None
    if stored != OURS:
        raise FormatError(
            f"the event store holds {_text(stored)}, but this release reads {_text(OURS)}; use the release that wrote it"
        )


async def check_at_start(url: str, settings: StoreSettings, metrics: Metrics) -> None:
    """``check_format`` of the store at ``url``; a store that does not answer now is checked later, by ``Health``.

    Raises:
        FormatError: the store has another format, or other bins.
    """
    connection = connect(url, metrics, deadline_s=settings.store_deadline_ms / 1000, connections=2)
    try:
        with suppress(Unavailable):
            await check_format(connection)
    finally:
        await connection.close()


def _text(format: Format) -> str:
    return msgspec.json.encode(format).decode()
