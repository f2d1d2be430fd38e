"""The attributes that a bundle reads, and their features.

Each declared attribute is an input of its own. A kind says how its values are read:

    number    its position among the numbers of the training data, 0 .. 1: the value's quantile, interpolated linearly
    boolean   one of the values "false" and "true"
    category  one of the known values. "en-GB" falls back to "en" if only "en" is known
    list      a set of known values, and the number of elements. Text is split at the separator

A value that is missing, unknown or of another kind is masked. A mask is learned like a value.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from model.engagement.attributes import AttributeValue
from model.engagement.video import Video

Kind = Literal["number", "boolean", "category", "list"]
BOOLEANS: Final = ("false", "true")
"""Values of a boolean, as the feature columns order them."""
ALLOWED_VALUES: Final[dict[Kind, str]] = {
    "number": "a number",
    "boolean": "true or false",
    "category": "a string",
    "list": "a list of strings, or a string",
}
"""The values that each kind accepts, in words."""
_LENGTH_SCALE: Final = 8.0
"""log2 of one more than the number of elements at which the feature of a list's length is 1."""


@dataclass(frozen=True, slots=True)
class Attribute:
    """An attribute that a bundle reads.

    Attributes:
        name: the attribute's name.
        kind: how its values are read.
        values: known values of a category, a boolean or a list.
        quantiles: quantiles of a number in the training data at evenly spaced levels from 0 to 1, non-decreasing.
        separator: the string that separates the elements of a list that is given as one string.
    """

    name: str
    kind: Kind
    values: tuple[str, ...] = ()
    quantiles: tuple[float, ...] = ()
    separator: str = ","
    _index: dict[str, int] = field(init=False, repr=False, compare=False, default_factory=dict)

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"{self.name}: kind {self.kind!r}; allowed: {', '.join(get_args(Kind))}")
        if self.kind == "number" and len(self.quantiles) < 2:
            raise ValueError(f"{self.name}: a number needs at least two quantiles")
        self._index.update({value: i + 1 for i, value in enumerate(self.values)})

    def accepts(self, value: AttributeValue) -> bool:
        """Return whether a value is of this attribute's kind."""
        if self.kind == "number":
            return isinstance(value, int | float) and not isinstance(value, bool)
        if self.kind == "boolean":
            return isinstance(value, bool)
        return isinstance(value, str) or (self.kind == "list" and isinstance(value, tuple | list))

    def known(self, value: AttributeValue | None) -> list[int]:
        """Return the indices of the known values, from 1 on and without duplicates. Return [0] if there is none."""
        if value is None or not self.accepts(value):
            return [0]
        if isinstance(value, bool):
            return [self._index[BOOLEANS[value]]]
        if self.kind == "category":
            name = str(value)
            return [self._index.get(name) or self._index.get(name.split("-")[0], 0)]
        items = elements(value, self.separator)
        return list(dict.fromkeys(index for item in items if (index := self._index.get(item)))) or [0]


def elements(value: AttributeValue, separator: str) -> list[str]:
    """Return the elements of a list. A string is split at ``separator``, without empty elements and outer blanks."""
    if isinstance(value, str):
        return [item for part in value.split(separator) if (item := part.strip())]
    return list(value) if isinstance(value, tuple | list) else []


@dataclass(frozen=True, slots=True)
class AttributeLayout:
    """Where each attribute is in the features of a video.

    The features are N numbers, their N masks, and then one bag for each attribute with known values. The numbers are the
    numbers and the lengths of lists, in the order of the attributes. A bag has one column for "missing or unknown" and
    one for each known value.

    ``number_of`` maps the index of an attribute to its number. ``bag_of`` maps it to the slice of its bag.
    """

    number_of: Mapping[int, int]
    bag_of: Mapping[int, slice]
    width: int

    @staticmethod
    def of(attributes: Sequence[Attribute]) -> AttributeLayout:
        """Return the layout of the attributes."""
        counted = [i for i, attribute in enumerate(attributes) if attribute.kind in ("number", "list")]
        number_of, bag_of = {i: at for at, i in enumerate(counted)}, {}
        at = 2 * len(number_of)
        for i, attribute in enumerate(attributes):
            if attribute.kind != "number":
                bag_of[i] = slice(at, at := at + 1 + len(attribute.values))
        return AttributeLayout(number_of, bag_of, at)


def attribute_features(
    attributes: Sequence[Attribute], layout: AttributeLayout, videos: Sequence[Video]
) -> NDArray[np.float32]:
    """Return the features (N, layout.width) float32. A bag's columns add up to 1, and a number is in [0, 1]."""
    out = np.zeros((len(videos), layout.width), np.float32)
    masks = len(layout.number_of)
    given = [dict(video.attributes) for video in videos]
    for i, attribute in enumerate(attributes):
        number = layout.number_of.get(i)
        levels = np.linspace(0, 1, len(attribute.quantiles)) if attribute.kind == "number" else None
        for row, values in zip(out, given, strict=True):
            value: Any = values.get(attribute.name)
            if i in layout.bag_of:
                found = attribute.known(value)
                row[layout.bag_of[i]][found] = 1 / len(found)
            if number is None or value is None or not attribute.accepts(value):
                continue
            row[masks + number] = 1
            if levels is not None:
                row[number] = np.interp(float(value), attribute.quantiles, levels)
            else:
                row[number] = min(np.log2(1.0 + len(elements(value, attribute.separator))) / _LENGTH_SCALE, 1.0)
    return out
