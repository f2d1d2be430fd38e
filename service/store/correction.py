"""A count that was wrong, and what it should have been."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Correction:
    """Lowers the count of a type from ``replaces``, which it must have now, by what was counted too much.

    A counter: readings that said ``replaces`` said ``value`` instead; with ``from_us`` (us), all readings from then on that
    said more than ``value`` did. The count is then the largest reading, which may be another. Events: the sum becomes
    ``value``; what is too much is taken from the bins with the largest sums, with ``from_us`` from those from then on.
    """

    type: str
    value: int
    replaces: int
    from_us: int | None = None


@dataclass(frozen=True, slots=True)
class Corrected:
    """The video's new version, and the type's count now."""

    version: int
    total: int
