"""Attributes: what is known about a video beyond its metadata fields, under names that the data's owner chooses.

An attribute is a number, a boolean, a string or a list of strings. The store and the data set keep every attribute. A
bundle declares the attributes that its model reads (``model.features.attributes``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

AttributeValue = bool | float | str | tuple[str, ...]
Attributes = tuple[tuple[str, AttributeValue], ...]
"""Attributes sorted by name. The type can be hashed, because videos are keys of caches."""

MAX_ATTRIBUTES: Final = 64
"""Maximum number of attributes of one video."""
MAX_NAME: Final = 128
"""Maximum number of characters of an attribute's name."""
MAX_TEXT: Final = 1_024
"""Maximum number of characters of a string."""
MAX_ITEMS: Final = 512
"""Maximum number of strings in a list."""
MAX_ITEM: Final = 256
"""Maximum number of characters of a string in a list."""
MAX_NUMBER: Final = 1e15
"""Maximum absolute value of a number."""

ALLOWED: Final = (
    f"a number from -{MAX_NUMBER:g} to {MAX_NUMBER:g}, true, false, a string of at most {MAX_TEXT:,} characters, or a "
    f"list of at most {MAX_ITEMS} strings of at most {MAX_ITEM} characters"
)
ALLOWED_NAME: Final = f"names of 1 to {MAX_NAME} characters"


def is_name(name: object) -> bool:
    """Return whether an attribute may have this name."""
    return isinstance(name, str) and 1 <= len(name) <= MAX_NAME


def is_value(value: object) -> bool:
    """Return whether a value is within the limits, as it is in JSON: a list is a ``list`` or a tuple."""
    if isinstance(value, bool):
        return True
    if isinstance(value, int | float):
        return abs(value) <= MAX_NUMBER
    if isinstance(value, str):
        return len(value) <= MAX_TEXT
    if isinstance(value, list | tuple):
        return len(value) <= MAX_ITEMS and all(isinstance(item, str) and len(item) <= MAX_ITEM for item in value)
    return False


def kind_of(value: AttributeValue) -> str:
    """Return the kind of a value in words: "number", "boolean", "text" or "list"."""
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number" if isinstance(value, float) else "list"


def attributes_of(values: Mapping[str, Any]) -> Attributes:
    """Return attributes whose values satisfy ``is_value``. A missing value, which is None or "", is left out.

    Whole numbers become floats, so that equal values are equal attributes.
    """
    return tuple(
        (name, _canonical(value)) for name, value in sorted(values.items()) if value is not None and value != ""
    )


def _canonical(value: Any) -> AttributeValue:
    if isinstance(value, bool | str):
        return value
    return tuple(value) if isinstance(value, list | tuple) else float(value)
