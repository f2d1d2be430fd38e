"""The embedded bank: Qdrant's engine in this process, in a folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Final

from model.bank import embedded_folder
from model.bank.embedded_engine import EmbeddedEngine
from model.bank.interface import BankQuery, BankVideo, Candidate, PastVideo, Progress
from model.bank.lru_cache import Cache
from model.bank.search import CONTENT, Ask, search
from model.bank.search_cache import SearchCache
from model.bank.stored_video import StoredVideo
from model.bank.tombstone import edge_key
from model.bank.tombstone import edge_key_of as key_of
from model.bank.vacuum import PATIENCE_S, vacuum
from model.bank.validation import last_of_each
from model.errors import BankError, M3TRError

log = logging.getLogger(__name__)

CACHE_ROWS: Final = 32_768
"""Decoded videos kept in memory, 2 to 4 KB each."""
CACHE_CREATORS: Final = 4_096
"""Creators whose videos are kept in memory as a list."""
FLUSH_EVERY: Final = 5_000
"""Videos written between two flushes; what the log holds since then survives kill -9, not a power cut."""


class EmbeddedBank:
    """A Bank in a folder, with one opener at a time. Thread-safe: one lock around every call.

    The engine keeps the GIL, so a thread that searches stops all others meanwhile (about 0.5 ms a query), and
    ``optimize`` stops the process for as long as it takes (half a minute for 80,000 vectors): call it while building.
    """

    def __init__(self, path: Path, lock: embedded_folder.Lock, shard: EmbeddedEngine, dims: tuple[int, int]) -> None:
        """Use ``open`` or ``build``."""
        self.path = path
        self._hold: embedded_folder.Lock | None = lock
        self._shard = shard
        self._dims = dims
        self._lock = RLock()
        self._cache: Cache[int, StoredVideo] = Cache(CACHE_ROWS)
        self._creators: Cache[str, list[PastVideo]] = Cache(CACHE_CREATORS)
        self._nearby: SearchCache[int] | None = None
        self._unflushed = 0
        self._place: TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: Path, content_dim: int, trajectory_dim: int, create: bool = False) -> EmbeddedBank:
        """Open the bank at ``path``, a copy of it if it is read-only; with ``create``, start an empty one if nothing is there."""
        if create and not (path.exists() and any(path.iterdir())):
            with cls.build(path, content_dim, trajectory_dim):
                pass
        embedded_folder.check_complete(path, content_dim, trajectory_dim)
        if embedded_folder.writable(path):
            return cls._on(path, content_dim, trajectory_dim, create=False)
        return cls._copied(path, content_dim, trajectory_dim)

    @classmethod
    def _copied(cls, path: Path, content_dim: int, trajectory_dim: int) -> EmbeddedBank:
        try:
            place = TemporaryDirectory(prefix="m3tr-bank-")
        except OSError as error:
            raise BankError(
                f"bank {path}: is read-only, and there is no place for a copy: {error}; set TMPDIR to a folder that can be written"
            ) from error
        try:
            embedded_folder.copy(path, copy := Path(place.name) / path.name)
            log.warning("bank %s is read-only: a copy is used, and what enters it is lost when it is closed", path)
            bank = cls._on(copy, content_dim, trajectory_dim, create=False)
        except BaseException:
            place.cleanup()
            raise
        bank._place = place
        return bank

    @classmethod
    @contextmanager
    def build(cls, path: Path, content_dim: int, trajectory_dim: int) -> Iterator[EmbeddedBank]:
        """Fill a new bank, which replaces what is at ``path`` when the block ends without an error.

        Until then it is a hidden folder beside ``path``, where a crash leaves it to the next ``build``.
        """
        part = embedded_folder.building(path)
        bank = cls._on(part, content_dim, trajectory_dim, create=True)
        try:
            yield bank
        except BaseException:
            bank.close()
            shutil.rmtree(part)
            raise
        bank.close()
        embedded_folder.mark_complete(part, content_dim, trajectory_dim)
        embedded_folder.install(part, path)

    @classmethod
    def _on(cls, path: Path, content_dim: int, trajectory_dim: int, *, create: bool) -> EmbeddedBank:
        lock = embedded_folder.Lock(path)
        try:
            if not create:
                if embedded_folder.is_soiled(path):
                    vacuum(path, lock)
                embedded_folder.read_ahead(path)
            with _engine(path):
                make = EmbeddedEngine.create if create else EmbeddedEngine.load
                shard = make(embedded_folder.shard_path(path), content_dim, trajectory_dim)
        except BankError:
            lock.release()
            raise
        return cls(path, lock, shard, (content_dim, trajectory_dim))

    def __enter__(self) -> EmbeddedBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace videos, each atomically; see Bank."""
        distinct = last_of_each(videos)
        with self._use() as shard:
            try:
                shard.upsert(distinct)
            finally:
                self._outdate([key_of(video.video_id) for video in distinct])
            self._unflushed += len(distinct)
            if self._unflushed >= FLUSH_EVERY:
                shard.flush()
                self._unflushed = 0

    def remove(self, video_ids: Sequence[str]) -> None:
        """Forget videos, at once and on disk; see Bank."""
        self._remove([key_of(video_id) for video_id in video_ids])

    def forget(self, tombstones: Sequence[str]) -> None:
        """``remove`` by tombstones; see Bank. When the bank is closed, or opened again, their bytes leave its files too."""
        self._remove([edge_key(mark) for mark in tombstones])

    def _remove(self, gone: Sequence[int]) -> None:
        with self._use() as shard:
            gone = shard.present(gone)
            if not gone:
                return
            embedded_folder.soil(self.path)
            try:
                shard.remove(gone)
                shard.flush()
            finally:
                self._outdate(gone)

    def remember(self, videos: int) -> None:
        """Keep what is near each of the newest ``videos`` that ask, for those that ask again and again."""
        self._nearby = SearchCache(videos)

    def search(self, queries: Sequence[BankQuery]) -> list[list[Candidate]]:
        """Neighbours of each query; see Bank. Many queries in one call are faster than many calls."""
        with self._use() as shard:
            return search(queries, self._dims, key_of, lambda asks: self._nearest(shard, asks), self._rows)

    def creator(self, creator_ids: Sequence[str]) -> dict[str, list[PastVideo]]:
        """All videos of each creator; see Bank."""
        known = {creator_id: self._creators.get(creator_id) for creator_id in creator_ids}
        found: dict[str, list[PastVideo]] = {creator_id: [] for creator_id, past in known.items() if past is None}
        if found:
            with self._use() as shard:
                rows = self._rows([(key, CONTENT) for key in shard.keys_by(list(found))])
                for row in sorted(rows.values(), key=lambda row: (row.published_us, row.video_id)):
                    if row.creator_id is not None:
                        found[row.creator_id].append(row.past())
                for creator_id, past in found.items():
                    self._creators.put(creator_id, past)
        return {creator_id: found[creator_id] if past is None else past for creator_id, past in known.items()}

    def optimize(self, progress: Progress | None = None) -> None:
        """Purge replaced points, build graphs for spaces of more than 25,000 vectors. Stops the process meanwhile."""
        with self._use() as shard:
            if progress is not None:
                progress(0, 1)
            shard.optimize()
            shard.flush()
            if progress is not None:
                progress(1, 1)

    def counts(self) -> dict[str, int]:
        """Number of videos and of trajectories."""
        with self._use() as shard:
            sizes = shard.sizes()
            return {"videos": shard.points(), "trajectories": sum(n for space, n in sizes.items() if space != CONTENT)}

    def close(self) -> None:
        """Flush and give the folder up."""
        if self._hold is not None:
            embedded_folder.write_back(self.path)
        with self._lock:
            if self._hold is None:
                return
            try:
                with _engine(self.path):
                    if self._unflushed:
                        self._shard.flush()
                    self._shard.close()
                if embedded_folder.is_soiled(self.path):
                    vacuum(self.path, self._hold, wait_s=PATIENCE_S)
            finally:
                self._hold.release()
                self._hold = None
                if self._place is not None:
                    self._place.cleanup()

    def _outdate(self, changed: Sequence[int]) -> None:
        """Drop what is remembered of changed videos, and every answer that they may change."""
        for key in changed:
            self._cache.drop(key)
        self._creators.clear()
        if self._nearby is not None:
            self._nearby.clear()

    def _nearest(self, shard: EmbeddedEngine, asks: Sequence[Ask]) -> list[list[tuple[int, float]]]:
        if self._nearby is None:
            return shard.nearest(asks)
        return self._nearby.nearest(asks, shard.steady, shard.nearest, self._rows)

    def _rows(self, wanted: Sequence[tuple[int, int]]) -> dict[int, StoredVideo]:
        rows: dict[int, StoredVideo] = {}
        missing: list[int] = []
        for key in dict.fromkeys(key for key, _ in wanted):
            row = self._cache.get(key)
            if row is None:
                missing.append(key)
            else:
                rows[key] = row
        for key, row in self._shard.rows(missing).items():
            self._cache.put(key, row)
            rows[key] = row
        return rows

    @contextmanager
    def _use(self) -> Iterator[EmbeddedEngine]:
        with self._lock, _engine(self.path):
            if self._hold is None:
                raise BankError(f"bank {self.path}: closed")
            yield self._shard


@contextmanager
def _engine(path: Path) -> Iterator[None]:
    """The engine raises bare Exceptions: name the bank, and make them ours."""
    try:
        yield
    except M3TRError:
        raise
    except Exception as error:
        raise BankError(f"bank {path}: {error}") from error
