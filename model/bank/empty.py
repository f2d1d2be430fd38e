"""A bank without videos, for forecasts without neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from model.bank.interface import BankQuery, BankVideo, Candidate, PastVideo, Progress


class EmptyBank:
    """A bank that is always available and always empty."""

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Ignore the videos."""

    def remove(self, video_ids: Sequence[str]) -> None:
        """Do nothing."""

    def forget(self, tombstones: Sequence[str]) -> None:
        """Do nothing."""

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Return no neighbours for any query."""
        return [[] for _ in queries]

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """Return no videos for any creator."""
        return {creator_id: [] for creator_id in creator_ids}

    def cache_searches(self, videos: int) -> None:
        """Do nothing."""

    def optimize(self, progress: Progress | None = None) -> None:
        """Do nothing."""

    def counts(self) -> dict[str, int]:
        """Return zero for all counts."""
        return {"videos": 0, "trajectories": 0}

    def close(self) -> None:
        """Do nothing."""
