"""The bank on a Qdrant server."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final, TypeVar

from qdrant_client import QdrantClient

from model.bank import server_engine
from model.bank.interface import BankQuery, BankVideo, Candidate, PastVideo, Progress
from model.bank.lru_cache import Cache
from model.bank.search import Ask, search
from model.bank.search_cache import SearchCache
from model.bank.server_deadline import Deadlines
from model.bank.server_engine import ServerEngine
from model.bank.stored_video import StoredVideo
from model.bank.tombstone import server_key
from model.bank.tombstone import server_key_of as key_of
from model.bank.validation import last_of_each
from model.errors import BankError, M3TRError

T = TypeVar("T")

CACHE_ROWS: Final = 32_768
"""Decoded videos kept in memory, 1 to 3 KB each."""
CACHE_S: Final = 60.0
"""Seconds for which a decoded video or a size is trusted: other processes write to the server too."""
CACHE_CREATORS: Final = 4_096
"""Creators whose videos are kept in memory as a list."""
UPSERT_VIDEOS: Final = 256
"""Videos in one write, and in one write deadline."""
OPTIMIZE_S: Final = 1800.0
"""Longest wait for the server's optimizers."""


class ServerBank:
    """A Bank on a server, under the aliases ``{prefix}_content`` and ``{prefix}_trajectory``. Thread-safe.

    ``search``, ``creator`` and ``counts`` answer or raise BankError within ``deadline_s``; a write has
    ``write_deadline_s`` for every 256 videos, and one that was late may yet take effect (repeating it is safe).
    The constructor does not connect: a server that is down fails the calls, not the start.
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
        self.url = url
        self.prefix = prefix
        self._dims = (content_dim, trajectory_dim)
        self._deadline_s = deadline_s
        self._write_deadline_s = write_deadline_s
        self._owned = client is None
        timeout_s = math.ceil(max(deadline_s, write_deadline_s))
        self._client = client or QdrantClient(url=url, api_key=api_key, timeout=timeout_s, check_compatibility=False)
        self._deadlines = Deadlines()
        self._remote: ServerEngine | None = None
        self._cache: Cache[str, StoredVideo] = Cache(CACHE_ROWS, CACHE_S)
        self._creators: Cache[str, list[PastVideo]] = Cache(CACHE_CREATORS, CACHE_S)
        self._nearby: SearchCache[str] | None = None
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
        """Fill a new bank, which readers see, in place of the old one, when the block ends without an error."""
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
            bank._remote = filled
            try:
                yield bank
            except BaseException:
                with contextlib.suppress(BankError):
                    bank._call("drop", lambda: server_engine.drop(filled), write_deadline_s)
                raise
            # If this fails the aliases may have moved all the same: nothing is dropped, the next fill tidies up.
            bank._call("publish", lambda: server_engine.publish(filled, prefix), write_deadline_s)
        finally:
            bank.close()

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace videos; see Bank. Not atomic: a crash in between may leave a video's old trajectories."""
        distinct = last_of_each(videos)
        for start in range(0, len(distinct), UPSERT_VIDEOS):
            chunk = distinct[start : start + UPSERT_VIDEOS]
            try:
                self._call("upsert", lambda chunk=chunk: self._found().upsert(chunk), self._write_deadline_s)  # type: ignore[misc]
            finally:
                self._outdate([key_of(video.video_id) for video in chunk])

    def remove(self, video_ids: Sequence[str]) -> None:
        """Forget videos; see Bank. Another process may still answer with them for CACHE_S seconds."""
        try:
            self._call("remove", lambda: self._found().remove(video_ids), self._write_deadline_s)
        finally:
            self._outdate([key_of(video_id) for video_id in video_ids])

    def forget(self, tombstones: Sequence[str]) -> None:
        """``remove`` by tombstones; see Bank."""
        keys = [server_key(mark) for mark in tombstones]
        try:
            for start in range(0, len(keys), UPSERT_VIDEOS):
                part = keys[start : start + UPSERT_VIDEOS]
                self._call("forget", lambda part=part: self._found().forget(part), self._write_deadline_s)  # type: ignore[misc]
        finally:
            self._outdate(keys)

    def remember(self, videos: int) -> None:
        """Keep what is near each of the newest ``videos`` that ask, for CACHE_S seconds: other processes write as well."""
        self._nearby = SearchCache(videos, CACHE_S)

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Neighbours of each query; see Bank."""
        return self._call("search", lambda: search(queries, self._dims, key_of, self._nearest, self._rows))

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """All videos of each creator; see Bank."""
        known = {creator_id: self._creators.get(creator_id) for creator_id in creator_ids}
        found: dict[str, list[PastVideo]] = {creator_id: [] for creator_id, past in known.items() if past is None}
        rows = self._call("creator", lambda: self._found().rows_by(list(found))) if found else {}
        for row in sorted(rows.values(), key=lambda row: (row.published_us, row.video_id)):
            if row.creator_id is not None:
                found[row.creator_id].append(row.past())
        for creator_id, past in found.items():
            self._creators.put(creator_id, past)
        return {creator_id: found[creator_id] if past is None else past for creator_id, past in known.items()}

    def optimize(self, progress: Progress | None = None) -> None:
        """Wait for the server's own optimizers; progress counts indexed vectors, which small banks never have."""
        end = time.monotonic() + OPTIMIZE_S
        while True:
            done, indexed, points = self._call("optimize", lambda: self._found().indexing())
            if progress is not None:
                progress(points if done else min(indexed, points), points)
            if done:
                return
            if time.monotonic() > end:
                raise BankError(f"{self!r}: still optimizing after {OPTIMIZE_S} s")
            time.sleep(0.5)

    def counts(self) -> dict[str, int]:
        """Number of videos and of trajectories."""
        videos, trajectories = self._call("counts", lambda: self._found().totals())
        return {"videos": videos, "trajectories": trajectories}

    def close(self) -> None:
        """Close the connections, unless the client was handed in."""
        if self._owned:
            self._client.close()

    def _outdate(self, keys: Sequence[str]) -> None:
        """Drop what is remembered of changed videos, and every answer that they may change."""
        for key in keys:
            self._cache.drop(key)
        self._sizes.clear()
        self._creators.clear()
        if self._nearby is not None:
            self._nearby.clear()

    def _found(self) -> ServerEngine:
        if self._remote is None:
            self._remote = server_engine.find(self._client, self.prefix, self._dims)
        return self._remote

    def _nearest(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        if self._nearby is None:
            return self._ask(asks)
        # Only this process knows what became usable when; what others add is seen when CACHE_S have passed.
        return self._nearby.nearest(asks, lambda _: True, self._ask, self._rows)

    def _ask(self, asks: Sequence[Ask]) -> list[list[tuple[str, float]]]:
        return self._found().nearest(asks, {space: self._size(space) for space in {ask.space for ask in asks}})

    def _size(self, space: int) -> int:
        size, since = self._sizes.get(space, (0, -math.inf))
        if time.monotonic() - since > CACHE_S:
            size = self._found().size(space)
            self._sizes[space] = (size, time.monotonic())
        return size

    def _rows(self, wanted: Sequence[tuple[str, int]]) -> Mapping[str, StoredVideo]:
        rows: dict[str, StoredVideo] = {}
        for key in dict.fromkeys(key for key, _ in wanted):
            row = self._cache.get(key)
            if row is not None:
                rows[key] = row
        missing = list(dict.fromkeys(key for key, _ in wanted if key not in rows))
        if missing:
            fetched = self._found().contents(missing)
            rows.update(fetched)
            for key, row in fetched.items():
                self._cache.put(key, row)
        bare = [(key, bucket) for key, bucket in wanted if key in rows and bucket not in rows[key].trajectories]
        if bare:
            self._found().add_trajectories(rows, bare)
        return rows

    def _call(self, what: str, function: Callable[[], T], seconds: float | None = None) -> T:
        name = f"{what} on {self!r}"
        try:
            return self._deadlines.call(function, self._deadline_s if seconds is None else seconds, name)
        except M3TRError:
            raise
        except Exception as error:
            raise BankError(f"{name}: {type(error).__name__}: {error}") from error
