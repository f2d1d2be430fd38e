"""Decompresses a gzip stream while it arrives."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import Final

from service.problems import Malformed

_WINDOW: Final = 16 + zlib.MAX_WBITS
"""zlib's code for the gzip format with the largest window."""
_PART_BYTES: Final = 64 * 1024


class Gunzip:
    """Decompresses the members of a gzip stream one after the other. The output is split into parts of up to ``_PART_BYTES`` bytes."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(_WINDOW)
        self._started = False

    def feed(self, data: bytes) -> Iterator[bytes]:
        """Decompress the next bytes, and yield the result in parts. Raise Malformed if the bytes are not gzip."""
        while data:
            if self._member.eof:
                self._member = zlib.decompressobj(_WINDOW)
            self._started = True
            try:
                part = self._member.decompress(data, _PART_BYTES)
            except zlib.error as error:
                raise _broken(str(error)) from None
            yield part
            data = self._member.unconsumed_tail or self._member.unused_data

    def finish(self) -> None:
        """Raise Malformed unless the last member is complete."""
        if not self._started or not self._member.eof:
            raise _broken("it ends early")


def _broken(why: str) -> Malformed:
    return Malformed(f"broken gzip: {why}", field="body", value="gzip", allowed="a whole gzip stream")
