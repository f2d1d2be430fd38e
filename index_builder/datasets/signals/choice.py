"""Chooses the signals that a model reads, and says how each of them moves.

A column is not a signal if its readings are times, number the rows, are all the same, or belong to few videos.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from index_builder.datasets.attributes.choice import are_times
from model.engagement.signals import SignalRows
from model.errors import DataError
from model.features.signals import Signal

_MIN_VIDEOS: Final = 20
"""Minimum number of videos with a reading. Nothing can be learned from fewer videos."""
_MIN_READINGS: Final = 100
"""Minimum number of readings from which only different whole numbers are not chance."""
_LEVELS: Final = np.linspace(0, 1, 33)


@dataclass(frozen=True, slots=True)
class SignalChoice:
    """What was decided about one signal: the declared signal, or None. ``reason`` says it in words."""

    name: str
    signal: Signal | None
    reason: str


def choose_signals(
    rows: Mapping[str, SignalRows], *, only: Sequence[str] | None = None, exclude: Sequence[str] = ()
) -> list[SignalChoice]:
    """Return a choice for each signal, by name. With ``only``, no other signals are read.

    Raises:
        DataError: ``only`` names a signal that the data do not have, or that says nothing.
    """
    if unknown := [name for name in only or () if name not in rows]:
        raise DataError(f"signals: {unknown[0]!r} is not a signal; allowed: {', '.join(sorted(rows)) or 'none'}")
    choices = []
    for name in sorted(rows):
        if name in exclude or (only is not None and name not in only):
            choices.append(SignalChoice(name, None, "not chosen in the settings"))
            continue
        choice = _choose(name, rows[name], forced=only is not None)
        if only is not None and choice.signal is None:
            raise DataError(f"signals: {name!r} cannot be read: {choice.reason}")
        choices.append(choice)
    return choices


def _choose(name: str, rows: SignalRows, *, forced: bool) -> SignalChoice:
    videos = int((np.diff(rows.offsets) > 0).sum())
    if videos < _MIN_VIDEOS:
        return SignalChoice(name, None, f"readings of {videos} videos; needed: {_MIN_VIDEOS}")
    if rows.value.min() == rows.value.max():
        return SignalChoice(name, None, "all readings are the same")
    if not forced and are_times(rows.value):
        return SignalChoice(name, None, "a time")
    n, whole = len(rows.value), bool((rows.value == np.floor(rows.value)).all())
    if not forced and whole and n >= _MIN_READINGS and len(np.unique(rows.value)) == n:
        return SignalChoice(name, None, "only different whole numbers: it identifies the row")
    return SignalChoice(name, Signal(name, tuple(np.quantile(rows.value, _LEVELS).tolist())), _movement(rows))


def _movement(rows: SignalRows) -> str:
    video = np.repeat(np.arange(len(rows.offsets) - 1), np.diff(rows.offsets))
    again, step = np.diff(video) == 0, np.diff(rows.value)
    if not again.any():
        return "signal, one reading of a video"
    falls, rises = ((again & moved).sum() / again.sum() for moved in (step < 0, step > 0))
    return f"signal, falls in {falls:.1%} and rises in {rises:.1%} of steps"
