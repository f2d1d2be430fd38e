"""What the store's content is written in: a format, and the bins that ages fall into.

``m3tr:format`` holds both, as JSON. A store without it has format 1 and bins 1: it is stamped. One of a newer release is
refused, at the start and by the export, because this release would read it wrongly and write into it what that one cannot read;
a record of a newer format begins with its format as text, and is refused one by one (``store.lua``). A release with another format
says how it reads an older one, or names the command that migrates it; so far there is one.
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
from service.store.redis.connection import RedisConnection

FORMAT: Final = 1


class Format(msgspec.Struct, frozen=True):
    """Versions of what a store holds."""

    format: int
    bins: int


OURS: Final = Format(FORMAT, BINS_VERSION)


class FormatError(M3TRError):
    """The store's content is of another format; the message says of which."""


async def check_format(link: RedisConnection) -> None:
    """Stamp a store that has no format yet, and refuse one of another.

    Raises:
        FormatError: another format, or other bins.
        Unavailable: the store does not answer, or takes no writes.
    """
    found = (await link.pipeline("format", [["GET", keys.FORMAT]]))[0]
    if found is None:
        await link.pipeline("format", [["SET", keys.FORMAT, msgspec.json.encode(OURS), "NX"]])
        found = (await link.pipeline("format", [["GET", keys.FORMAT]]))[0]
    try:
        stored = msgspec.json.decode(found or b"", type=Format)
    except (msgspec.MsgspecError, UnicodeError):
        raise FormatError(f"{keys.FORMAT}: {found!r} cannot be read; allowed is JSON like {_text(OURS)}") from None
    if stored != OURS:
        raise FormatError(
            f"the event store holds {_text(stored)}, and this release reads {_text(OURS)}; take the release that wrote it"
        )


async def check_at_start(url: str, settings: StoreSettings, metrics: Metrics) -> None:
    """``check_format`` of the store at ``url``; one that does not answer now is looked at when it does.

    Raises:
        FormatError: another format, or other bins.
    """
    link = RedisConnection(url, metrics, deadline_s=settings.store_deadline_ms / 1000, connections=2)
    try:
        with suppress(Unavailable):
            await check_format(link)
    finally:
        await link.close()


def _text(one: Format) -> str:
    return msgspec.json.encode(one).decode()
