"""A limit on how many JSON values a body may hold: parsing costs time and memory for each of them."""

from __future__ import annotations

from typing import Final

import numpy as np

from service.problems import TooLarge

UNCOUNTED_BYTES: Final = 256 * 1024
"""Bodies of up to this size are parsed uncounted: parsing them takes milliseconds, whatever they hold."""
VALUE_BYTES: Final = 64
"""Approximate memory of one parsed value."""


def count_values(body: bytes) -> int:
    """An upper bound of the values in a part of a JSON text: each value but the first follows a comma or an opening bracket."""
    characters = np.frombuffer(body, np.uint8)
    return 1 + sum(int(np.count_nonzero(characters == ord(mark))) for mark in ",[{")


def check_values(values: int, limit: int) -> None:
    """Raise TooLarge for more than ``limit`` values."""
    if values > limit:
        raise TooLarge(
            f"the body holds more than {limit} values",
            headers={"Connection": "close"},
            field="body",
            value=f"{values} values or more",
            allowed=f"at most {limit} values (commas and opening brackets are counted); send more as NDJSON",
        )
