"""The version of the store's format, and the version of the age bins.

The key ``m3tr:format`` holds both versions as JSON. If a store does not have this key, its format is 1 and its bins are 1, and the
key is written. The service and the export refuse a store that a newer release has written. This release would misread such a store,
and the newer release could not read what this release writes. If only some records have a newer format, the Lua functions refuse
only those records. A record of a newer format begins with the name of its format as text. A release with a new format will say how
it reads the older format, or name the command that migrates a store. So far there is only one format.
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
    """The versions of a store's format and of its age bins."""

    format: int
    bins: int


OURS: Final = Format(FORMAT, BINS_VERSION)


class FormatError(M3TRError):
    """The store has a different format. The message names the store's format."""


async def check_format(connection: RedisConnection) -> None:
    """Check that the store has this release's format. Write the format if the store has none yet.

    Raises:
        FormatError: if the store has a different format, or different bins.
        Unavailable: if the store does not answer, or does not accept writes.
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
    """Check the format of the store at ``url``. If the store does not answer now, ``Health`` checks it later.

    Raises:
        FormatError: if the store has a different format, or different bins.
    """
    connection = connect(url, metrics, deadline_s=settings.store_deadline_ms / 1000, connections=2)
    try:
        with suppress(Unavailable):
            await check_format(connection)
    finally:
        await connection.close()


def _text(format: Format) -> str:
    return msgspec.json.encode(format).decode()
