"""Which parts of the method a bundle uses. For an ablation, some parts are switched off."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Ablation:
    """The parts of the method that are switched on.

    Attributes:
        mhp: the Mamba-Hawkes state.
        trajectory: the search for neighbours by trajectory similarity.
        retrieval: the search for neighbours in the bank.
        content: the content vectors of videos.
        cascade: the self-exciting cascade, which needs events.
    """

    mhp: bool = True
    trajectory: bool = True
    retrieval: bool = True
    content: bool = True
    cascade: bool = True

    @property
    def by_content(self) -> bool:
        """Whether neighbours are searched for by content."""
        return self.retrieval and self.content

    @property
    def by_trajectory(self) -> bool:
        """Whether neighbours are searched for by trajectory."""
        return self.retrieval and self.trajectory

    @property
    def neighbours(self) -> bool:
        """Whether neighbours are searched for at all."""
        return self.by_content or self.by_trajectory

    @property
    def fixed_weight(self) -> float | None:
        """The weight of content similarity if only one similarity is used. The weight is None if both are used."""
        if self.by_content and self.by_trajectory:
            return None
        return 0.0 if self.by_trajectory else 1.0


WHOLE: Final = Ablation()
"""All parts are switched on."""
