"""Which parts of the method a bundle has: all of them, or all but some for an ablation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Ablation:
    """What is switched on: ``mhp`` state, similarity by ``trajectory``, ``retrieval``, ``content``, and ``cascade`` for events."""

    mhp: bool = True
    trajectory: bool = True
    retrieval: bool = True
    content: bool = True
    cascade: bool = True

    @property
    def by_content(self) -> bool:
        """Whether neighbours are looked for by content."""
        return self.retrieval and self.content

    @property
    def by_trajectory(self) -> bool:
        """Whether neighbours are looked for by trajectory, which is the state's."""
        return self.retrieval and self.trajectory and self.mhp

    @property
    def neighbours(self) -> bool:
        """Whether neighbours are looked for at all."""
        return self.by_content or self.by_trajectory

    @property
    def fixed_weight(self) -> float | None:
        """The weight of content similarity where there is nothing to weigh; None where both similarities count."""
        if self.by_content and self.by_trajectory:
            return None
        return 0.0 if self.by_trajectory else 1.0


WHOLE: Final = Ablation()
"""Nothing switched off."""
