"""Chooses the attributes that a model reads, by what their values look like.

A column is an input unless it says nothing about other videos:

    a time                          an input would be known only relative to other times
    one value                       nothing to tell videos apart
    almost only different values    it identifies the row or repeats a text
    few videos                      nothing can be learned from it

A user may name the attributes instead (settings ``attributes`` and ``exclude``).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model.engagement.attributes import Attributes
from model.errors import DataError
from model.features.attributes import BOOLEANS, Attribute, elements

MIN_VIDEOS: Final = 20
"""Minimum number of videos with a value. The model does not distinguish values of fewer videos."""
_MAX_VALUES: Final = 200
"""Maximum number of values of one attribute. The most frequent values are kept."""
_KNOWN_SHARE: Final = 0.2
"""Minimum fraction of a text's cells whose value occurs in ``MIN_VIDEOS`` videos or more."""
_LIST_SHARE: Final = 0.8
"""Minimum fraction of known elements at which text with separators is read as a list."""
_SEPARATED_SHARE: Final = 0.05
"""Minimum fraction of cells with a separator at which a text may be a list."""
_DISTINCT_SHARE: Final = 0.99
"""Fraction of different values above which whole numbers identify their rows."""
_LEVELS: Final = np.linspace(0, 1, 33)
_SEPARATORS: Final = (",", ";", "|")
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d([T ]|$)")
_EPOCHS: Final = (1.0, 1e3, 1e6, 1e9)
_EPOCH_S: Final = (8e8, 2.5e9)
"""Seconds since 1970 of the years 1995 to 2049. Numbers that all lie there, in a usual unit, are times."""


@dataclass(frozen=True, slots=True)
class Choice:
    """What was decided about one column: the attribute that is read, or None. ``reason`` says it in words."""

    name: str
    attribute: Attribute | None
    reason: str


def choose_attributes(
    videos: Sequence[Attributes], *, only: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> list[Choice]:
    """Return a choice for each attribute that ``videos`` have, by name.

    With ``only``, exactly the named attributes are read, whatever their values look like. Attributes in ``exclude`` are
    not read.

    Raises:
        DataError: no video has a value of an attribute that ``only`` or ``exclude`` names, or no model can read it.
    """
    cells: dict[str, list[Any]] = {}
    for attributes in videos:
        for name, value in attributes:
            cells.setdefault(name, []).append(value)
    for setting, names in (("attributes", only or ()), ("exclude", exclude)):
        if unknown := [name for name in names if name not in cells]:
            raise DataError(f"{setting}: {unknown[0]!r} is not a further column; allowed: {', '.join(sorted(cells))}")
    choices = []
    for name in sorted(cells):
        if name in exclude or (only is not None and name not in only):
            choices.append(Choice(name, None, "not chosen in the settings"))
            continue
        choice = _choose(name, cells[name], len(videos), forced=only is not None)
        if only is not None and choice.attribute is None:
            raise DataError(f"attributes: {name!r} cannot be read: {choice.reason}")
        choices.append(choice)
    return choices


def are_times(values: NDArray[np.float64]) -> bool:
    """Return whether all values (n,), n >= 1, look like seconds since 1970 or a smaller unit of time."""
    low, high = _EPOCH_S
    return any(low * unit <= values.min() and values.max() <= high * unit for unit in _EPOCHS)


def _choose(name: str, values: list[Any], videos: int, *, forced: bool) -> Choice:
    if len(values) < MIN_VIDEOS:
        return Choice(name, None, f"known of {len(values)} videos; needed: {MIN_VIDEOS}")
    if len(values) == videos and len(set(values)) == 1:
        return Choice(name, None, "the same value for every video")
    if all(isinstance(value, bool) for value in values):
        return Choice(name, Attribute(name, "boolean", BOOLEANS), "boolean")
    if all(isinstance(value, float) for value in values):
        return _number(name, np.array(values), forced)
    if all(isinstance(value, tuple) for value in values):
        return _list(name, [list(value) for value in values], ",", forced)
    if all(isinstance(value, str) for value in values):
        return _text(name, values, forced)
    return Choice(name, None, "values of several kinds")


def _number(name: str, values: NDArray[np.float64], forced: bool) -> Choice:
    whole = bool((values == np.floor(values)).all())
    if not forced and are_times(values):
        return Choice(name, None, "a time")
    if not forced and whole and len(values) >= 100 and len(np.unique(values)) > _DISTINCT_SHARE * len(values):
        return Choice(name, None, "almost only different whole numbers: it identifies the video")
    quantiles = np.quantile(values, _LEVELS)
    span = f"{values.min():g} to {values.max():g}"
    return Choice(name, Attribute(name, "number", quantiles=tuple(quantiles.tolist())), f"number, {span}")


def _text(name: str, values: list[str], forced: bool) -> Choice:
    if not forced and sum(bool(_DATE.match(value)) for value in values) > 0.95 * len(values):
        return Choice(name, None, "a time")
    # A list repeats its elements in different combinations. So there are fewer elements than texts.
    for separator in _SEPARATORS:
        if sum(separator in value for value in values) >= _SEPARATED_SHARE * len(values):
            lists = [elements(value, separator) for value in values]
            known = _known(lists)
            items = [item for row in lists for item in row]
            repeated = len(set(items)) < len(set(values))
            if repeated and sum(item in known for item in items) >= _LIST_SHARE * len(items):
                return _list(name, lists, separator, forced)
    known = _known([[value] for value in values])
    share = sum(value in known for value in values) / len(values)
    if not known or (not forced and share < _KNOWN_SHARE):
        return Choice(
            name, None, f"text, almost only different values: {share:.0%} occur in {MIN_VIDEOS} videos or more"
        )
    return Choice(name, Attribute(name, "category", tuple(sorted(known))), f"category of {len(known)} values")


def _list(name: str, lists: list[list[str]], separator: str, forced: bool) -> Choice:
    known = _known(lists)
    items = [item for row in lists for item in row]
    share = sum(item in known for item in items) / max(len(items), 1)
    if not known or (not forced and share < _KNOWN_SHARE):
        return Choice(
            name, None, f"lists of almost only different values: {share:.0%} occur in {MIN_VIDEOS} videos or more"
        )
    reason = f"list of {len(known)} values"
    return Choice(name, Attribute(name, "list", tuple(sorted(known)), separator=separator), reason)


def _known(lists: Sequence[Sequence[str]]) -> set[str]:
    """Return the most frequent values among those that occur in ``MIN_VIDEOS`` lists or more."""
    counted = Counter(item for row in lists for item in set(row))
    frequent = sorted((-n, item) for item, n in counted.items() if n >= MIN_VIDEOS)
    return {item for _, item in frequent[:_MAX_VALUES]}
