"""The embedded bank: Qdrant's engine inside this process, with its files in a folder."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import RLock
from typing import Final, TypeVar

from model.bank import embedded_folder
from model.bank.cached_engine import CachedEngine
from model.bank.embedded_engine import EmbeddedEngine
from model.bank.interface import BankVideo, PastVideo, Progress
from model.bank.search import CONTENT, Lookup
from model.bank.stored_video import StoredVideo
from model.bank.tombstone import embedded_key
from model.bank.tombstone import embedded_key_of as key_of
from model.bank.vacuum import CLOSE_WAIT_S, vacuum
from model.bank.validation import last_of_each
from model.errors import BankError, M3TRError

log = logging.getLogger(__name__)

T = TypeVar("T")

FLUSH_EVERY: Final = 5_000
"""Number of videos that are written between two flushes. Videos written after the last flush are only in the engine's
log. These videos survive kill -9, but not a power failure."""


class EmbeddedBank(CachedEngine[int]):
    """A thread-safe Bank in a folder that one process at a time may open. One lock protects every call.

    The engine holds the GIL. A search therefore stops all other threads, for about 0.5 ms per query. ``optimize``
    stops the whole process until it has finished, which takes half a minute with 80,000 vectors. So call ``optimize``
    when the bank is built.
    """

    def __init__(self, path: Path, lock: embedded_folder.Lock, engine: EmbeddedEngine, dims: tuple[int, int]) -> None:
        """Wrap an open engine. Callers use ``open`` or ``build`` instead."""
        # The folder's lock keeps other writers out, so cached results need no time limit.
        super().__init__(dims, ttl_s=None)
        self.path = path
        self._folder_lock: embedded_folder.Lock | None = lock
        self._engine = engine
        self._lock = RLock()
        self._unflushed = 0
        self._copy: TemporaryDirectory[str] | None = None

    @classmethod
    def open(cls, path: Path, content_dim: int, trajectory_dim: int, create: bool = False) -> EmbeddedBank:
        """Open the bank at ``path``. If its folder is read-only, a copy of the bank is opened instead.

        If ``create`` is true and there is nothing at ``path``, an empty bank is created.
        """
        if create and not (path.exists() and any(path.iterdir())):
            with cls.build(path, content_dim, trajectory_dim):
                pass
        embedded_folder.check_complete(path, content_dim, trajectory_dim)
        if embedded_folder.writable(path):
            return cls._open_folder(path, content_dim, trajectory_dim, create=False)
        return cls._open_copy(path, content_dim, trajectory_dim)

    @classmethod
    def _open_copy(cls, path: Path, content_dim: int, trajectory_dim: int) -> EmbeddedBank:
        try:
            temporary = TemporaryDirectory(prefix="m3tr-bank-")
        except OSError as error:
            raise BankError(
                f"bank {path}: is read-only and cannot be copied: {error}; set TMPDIR to a writable folder"
            ) from error
        try:
            embedded_folder.copy(path, copy := Path(temporary.name) / path.name)
            log.warning(
                "bank %s is read-only, so a copy is used; videos added to the copy are lost when the bank is closed",
                path,
            )
            bank = cls._open_folder(copy, content_dim, trajectory_dim, create=False)
        except BaseException:
            temporary.cleanup()
            raise
        bank._copy = temporary
        return bank

    @classmethod
    @contextmanager
    def build(cls, path: Path, content_dim: int, trajectory_dim: int) -> Iterator[EmbeddedBank]:
        """Yield a new bank, which the caller's ``with`` block fills. The new bank then replaces the bank at ``path``.

        If the block raises an error, the bank at ``path`` stays as it was. While the block runs, the new bank is in a
        hidden folder beside ``path``. If the process crashes, the next ``build`` removes this folder.
        """
        part = embedded_folder.new_folder_beside(path)
        bank = cls._open_folder(part, content_dim, trajectory_dim, create=True)
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
    def _open_folder(cls, path: Path, content_dim: int, trajectory_dim: int, *, create: bool) -> EmbeddedBank:
        lock = embedded_folder.Lock(path)
        try:
            if not create:
                if embedded_folder.needs_vacuum(path):
                    vacuum(path, lock)
                embedded_folder.read_ahead(path)
            with _bank_errors(path):
                make = EmbeddedEngine.create if create else EmbeddedEngine.load
                engine = make(embedded_folder.shard_path(path), content_dim, trajectory_dim)
        except BankError:
            lock.release()
            raise
        return cls(path, lock, engine, (content_dim, trajectory_dim))

    def __enter__(self) -> EmbeddedBank:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace videos; see Bank. Each video is written atomically."""
        distinct = last_of_each(videos)
        with self._use() as engine:
            try:
                engine.upsert(distinct)
            finally:
                self._invalidate([key_of(video.video_id) for video in distinct])
            self._unflushed += len(distinct)
            if self._unflushed >= FLUSH_EVERY:
                engine.flush()
                self._unflushed = 0

    def remove(self, video_ids: Sequence[str]) -> None:
        """Remove videos from memory and disk immediately; see Bank."""
        self._remove([key_of(video_id) for video_id in video_ids])

    def forget(self, tombstones: Sequence[str]) -> None:
        """Remove videos by their tombstones; see Bank.

        The bytes of these videos leave the files when the bank is closed, or else when it is next opened.
        """
        self._remove([embedded_key(tombstone) for tombstone in tombstones])

    def _remove(self, keys: Sequence[int]) -> None:
        with self._use() as engine:
            keys = engine.present(keys)
            if not keys:
                return
            embedded_folder.mark_for_vacuum(self.path)
            try:
                engine.remove(keys)
                engine.flush()
            finally:
                self._invalidate(keys)

    def past(self, video_ids: Sequence[str]) -> dict[str, PastVideo]:
        """Return the stored videos among ``video_ids``, by id, each with its whole curve."""
        with self._use():
            rows = self._rows([(key_of(video_id), CONTENT) for video_id in video_ids])
        return {row.video_id: row.past() for row in rows.values()}

    def optimize(self, progress: Progress | None = None) -> None:
        """Purge replaced points, and build search graphs for vector spaces with more than 25,000 vectors.

        The whole process stops until this is finished.
        """
        with self._use() as engine:
            if progress is not None:
                progress(0, 1)
            engine.optimize()
            engine.flush()
            if progress is not None:
                progress(1, 1)

    def counts(self) -> dict[str, int]:
        """Return the number of videos and of trajectories."""
        with self._use() as engine:
            sizes = engine.sizes()
            return {"videos": engine.points(), "trajectories": sum(n for space, n in sizes.items() if space != CONTENT)}

    def close(self) -> None:
        """Flush the bank and release the folder."""
        if self._folder_lock is not None:
            embedded_folder.write_back(self.path)
        with self._lock:
            if self._folder_lock is None:
                return
            try:
                with _bank_errors(self.path):
                    if self._unflushed:
                        self._engine.flush()
                    self._engine.close()
                if embedded_folder.needs_vacuum(self.path):
                    vacuum(self.path, self._folder_lock, wait_s=CLOSE_WAIT_S)
            finally:
                self._folder_lock.release()
                self._folder_lock = None
                if self._copy is not None:
                    self._copy.cleanup()

    def _call(self, what: str, function: Callable[[], T]) -> T:
        with self._use():
            return function()

    def _key(self, video_id: str) -> int:
        return key_of(video_id)

    def _nearest_in_engine(self, lookups: Sequence[Lookup]) -> list[list[tuple[int, float]]]:
        return self._engine.nearest(lookups)

    def _all_usable(self, lookup: Lookup) -> bool:
        return self._engine.all_usable(lookup)

    def _read(self, keys: Sequence[int]) -> dict[int, StoredVideo]:
        return self._engine.rows(keys)

    def _of_creators(self, creator_ids: Sequence[str]) -> Iterable[StoredVideo]:
        return self._rows([(key, CONTENT) for key in self._engine.keys_by(creator_ids)]).values()

    @contextmanager
    def _use(self) -> Iterator[EmbeddedEngine]:
        with self._lock, _bank_errors(self.path):
            if self._folder_lock is None:
                raise BankError(f"bank {self.path}: is closed")
            yield self._engine


@contextmanager
def _bank_errors(path: Path) -> Iterator[None]:
    """Turn the engine's errors, which are plain Exceptions, into BankErrors that name the bank."""
    try:
        yield
    except M3TRError:
        raise
    except Exception as error:
        raise BankError(f"bank {path}: {error}") from error
