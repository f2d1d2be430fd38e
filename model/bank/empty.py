"""A bank without videos, for forecasts without neighbours."""

from __future__ import annotations

from collections.abc import Sequence

from model.bank.interface import BankQuery, BankVideo, Candidate, PastVideo, Progress


class EmptyBank:
    """A bank that is always available and always empty."""

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Drop the videos."""

    def remove(self, video_ids: Sequence[str]) -> None:
        """Nothing to do."""

    def forget(self, tombstones: Sequence[str]) -> None:
        """Nothing to do."""

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """No neighbours for any query."""
        return [[] for _ in queries]

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """No videos for any creator."""
        return {creator_id: [] for creator_id in creator_ids}

    def cache_searches(self, videos: int) -> None:
        """Nothing to do."""

    def optimize(self, progress: Progress | None = None) -> None:
        """Nothing to do."""

    def counts(self) -> dict[str, int]:
        """Zero of everything."""
        return {"videos": 0, "trajectories": 0}

    def close(self) -> None:
        """Nothing to release."""
