"""Limits how many JSON values a body may contain, because each value costs time and memory during parsing."""

from __future__ import annotations

from typing import Final

import numpy as np

from service.problems import TooLarge

UNCOUNTED_BYTES: Final = 256 * 1024
"""Maximum size in bytes of a body whose values are not counted. Parsing a body of this size only takes milliseconds, whatever the
body contains."""
VALUE_BYTES: Final = 64
"""Approximate memory of one parsed value in bytes."""


def count_values(body: bytes) -> int:
    """Return an upper bound on the number of values in a chunk of a JSON text.

    Each value except the first follows a comma or an opening bracket, so these characters are counted.
    """
    characters = np.frombuffer(body, np.uint8)
    return 1 + sum(int(np.count_nonzero(characters == ord(mark))) for mark in ",[{")


def check_values(values: int, limit: int) -> None:
    """Raise TooLarge if there are more than ``limit`` values."""
    if values > limit:
        raise TooLarge(
            f"the body holds more than {limit} values",
            headers={"Connection": "close"},
            field="body",
            value=f"{values} values or more",
            allowed=f"at most {limit} values (commas and opening brackets are counted); send more as NDJSON",
        )
