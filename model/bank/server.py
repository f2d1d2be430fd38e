"""The bank on a Qdrant server."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from qdrant_client import QdrantClient

from model.bank import server_engine
from model.bank.cached_engine import CachedEngine
from model.bank.interface import BankVideo, Progress
from model.bank.search import Lookup
from model.bank.server_deadline import Deadlines
from model.bank.server_engine import ServerEngine
from model.bank.stored_video import StoredVideo
from model.bank.tombstone import server_key
from model.bank.tombstone import server_key_of as key_of
from model.bank.validation import last_of_each
from model.errors import BankError, M3TRError

T = TypeVar("T")

CACHE_S: Final = 60.0
"""Number of seconds for which cached results and sizes are used. The limit is needed because other processes write to
the server too."""
WRITE_VIDEOS: Final = 256
"""Maximum number of videos in one write. Each write has its own deadline."""
OPTIMIZE_S: Final = 1800.0
"""Maximum time in seconds to wait for the server's optimizers."""


class ServerBank(CachedEngine[str]):
    """A thread-safe Bank on a server, under the aliases ``{prefix}_content`` and ``{prefix}_trajectory``.

    ``search``, ``creator`` and ``counts`` return or raise BankError after at most ``deadline_s`` seconds. A write has
    a time limit of ``write_deadline_s`` seconds for every 256 videos. A write that missed its deadline may still take
    effect. Repeating the write is safe.

    The constructor does not connect. If the server is down, the calls fail, but the constructor succeeds.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        content_dim: int,
        trajectory_dim: int,
        deadline_s: float = 1.0,
        api_key: str | None = None,
        *,
        write_deadline_s: float = 30.0,
        client: QdrantClient | None = None,
    ) -> None:
        super().__init__((content_dim, trajectory_dim), CACHE_S)
        self.url = url
        self.prefix = prefix
        self._deadline_s = deadline_s
        self._write_deadline_s = write_deadline_s
        self._owned = client is None
        timeout_s = math.ceil(max(deadline_s, write_deadline_s))
        self._client = client or QdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False)
        self._deadlines = Deadlines()
        self._found: ServerEngine | None = None
        self._sizes: dict[int, tuple[int, float]] = {}

    def __repr__(self) -> str:
        return f"ServerBank(url={self.url!r}, prefix={self.prefix!r})"

    @classmethod
    @contextmanager
    def build(
        cls,
        url: str,
        prefix: str,
        content_dim: int,
        trajectory_dim: int,
        deadline_s: float = 1.0,
        api_key: str | None = None,
        *,
        write_deadline_s: float = 30.0,
        client: QdrantClient | None = None,
    ) -> Iterator[ServerBank]:
        """Yield a new bank, which the ``with`` block fills. When the block ends without an error, the new bank replaces the old one."""
        bank = cls(
            url,
            prefix,
            content_dim,
            trajectory_dim,
            deadline_s,
            api_key,
            write_deadline_s=write_deadline_s,
            client=client,
        )
        try:
            filled = bank._call(
                "create", lambda: server_engine.create(bank._client, prefix, bank._dims), write_deadline_s
            )
            bank._found = filled
            try:
                yield bank
            except BaseException:
                with contextlib.suppress(BankError):
                    bank._call("drop", lambda: server_engine.drop(filled), write_deadline_s)
                raise
            # If ``publish`` fails, the aliases may have moved anyway. So nothing is dropped here. The next fill
            # removes unused collections.
            bank._call("publish", lambda: server_engine.publish(filled, prefix), write_deadline_s)
        finally:
            bank.close()

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace videos; see Bank. This is not atomic. After a crash, old trajectories of a video may remain."""
        distinct = last_of_each(videos)
        for start in range(0, len(distinct), WRITE_VIDEOS):
            chunk = distinct[start : start + WRITE_VIDEOS]
            try:
                self._call("upsert", lambda chunk=chunk: self._engine().upsert(chunk), self._write_deadline_s)  # type: ignore[misc]
            finally:
                self._invalidate([key_of(video.video_id) for video in chunk])

    def remove(self, video_ids: Sequence[str]) -> None:
        """Remove videos; see Bank. Searches in other processes may still return them for up to CACHE_S seconds."""
        try:
            self._call("remove", lambda: self._engine().remove(video_ids), self._write_deadline_s)
        finally:
            self._invalidate([key_of(video_id) for video_id in video_ids])

    def forget(self, tombstones: Sequence[str]) -> None:
        """Remove videos by their tombstones; see Bank."""
        keys = [server_key(tombstone) for tombstone in tombstones]
        try:
            for start in range(0, len(keys), WRITE_VIDEOS):
                chunk = keys[start : start + WRITE_VIDEOS]
                self._call("forget", lambda chunk=chunk: self._engine().forget(chunk), self._write_deadline_s)  # type: ignore[misc]
        finally:
            self._invalidate(keys)

    def optimize(self, progress: Progress | None = None) -> None:
        """Wait for the server's own optimizers. ``progress`` gets the number of indexed vectors, which is 0 in a small bank."""
        end = time.monotonic() + OPTIMIZE_S
        while True:
            done, indexed, points = self._call("optimize", lambda: self._engine().indexing())
            if progress is not None:
                progress(points if done else min(indexed, points), points)
            if done:
                return
            if time.monotonic() > end:
                raise BankError(f"{self!r}: the server is still optimizing after {OPTIMIZE_S} s")
            time.sleep(0.5)

    def counts(self) -> dict[str, int]:
        """Return the number of videos and of trajectories."""
        videos, trajectories = self._call("counts", lambda: self._engine().totals())
        return {"videos": videos, "trajectories": trajectories}

    def close(self) -> None:
        """Close the connections, unless the caller provided the client."""
        if self._owned:
            self._client.close()

    def _invalidate(self, changed: Sequence[str]) -> None:
        super()._invalidate(changed)
        self._sizes.clear()

    def _engine(self) -> ServerEngine:
        if self._found is None:
            self._found = server_engine.find(self._client, self.prefix, self._dims)
        return self._found

    def _key(self, video_id: str) -> str:
        return key_of(video_id)

    def _nearest_in_engine(self, lookups: Sequence[Lookup]) -> list[list[tuple[str, float]]]:
        return self._engine().nearest(
            lookups, {space: self._size(space) for space in {lookup.space for lookup in lookups}}
        )

    def _all_usable(self, lookup: Lookup) -> bool:
        # Other processes may have written points that are not usable yet. Once such a point is usable, it is found
        # after at most CACHE_S seconds.
        return True

    def _read(self, keys: Sequence[str]) -> dict[str, StoredVideo]:
        return self._engine().contents(keys)

    def _of_creators(self, creator_ids: Sequence[str]) -> Iterable[StoredVideo]:
        return self._engine().rows_by(creator_ids).values()

    def _add_trajectories(self, rows: dict[str, StoredVideo], wanted: Sequence[tuple[str, int]]) -> None:
        missing = [(key, bucket) for key, bucket in wanted if key in rows and bucket not in rows[key].trajectories]
        if missing:
            self._engine().add_trajectories(rows, missing)

    def _size(self, space: int) -> int:
        size, since = self._sizes.get(space, (0, -math.inf))
        if time.monotonic() - since > CACHE_S:
            size = self._engine().size(space)
            self._sizes[space] = (size, time.monotonic())
        return size

    def _call(self, what: str, function: Callable[[], T], seconds: float | None = None) -> T:
        name = f"{what} on {self!r}"
        try:
            return self._deadlines.call(function, self._deadline_s if seconds is None else seconds, name)
        except M3TRError:
            raise
        except Exception as error:
            raise BankError(f"{name}: {type(error).__name__}: {error}") from error
