"""One shard of the embedded Qdrant engine, which stores each video as a point.

A video is ONE point with the named vectors ``content`` and ``t<bucket>``. The time from which a vector is usable is a
payload field with an integer index. This design has two advantages. A video is replaced by one engine update, which
the write-ahead log makes atomic under kill -9. And searches need no filter by age bucket. With 80,000 points, an
indexed filter costs five times as much as a scan of one bucket's vectors.

A named vector is created when a video with its age bucket is first added. The engine writes a new name first to its
segments and then to its configuration. If kill -9 happens between the two writes, the engine refuses to load. So the
file ``new_space`` is written before the change and removed after it. The file holds the names of all vectors, and
``load`` uses these names to repair the shard.

Vectors are stored with unit length. So the dot product is the cosine, and the engine does not change the vectors' bits.

The engine holds the GIL during every call, including ``optimize``. So batches make searches faster, but threads do
not.
"""

from __future__ import annotations

import shutil
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import qdrant_edge as qe

from model.bank.interface import BankVideo
from model.bank.search import CONTENT, Lookup
from model.bank.stored_video import StoredVideo, frozen, payload, row
from model.bank.tombstone import embedded_key_of as key_of
from model.bank.validation import findable

EXACT_UP_TO: Final = 25_000
"""Maximum number of vectors in a space that is searched by a scan, which is exact. Larger spaces are searched with a
graph, which is approximate."""
HNSW_EF: Final = 256
"""Search breadth of the graph in larger spaces. With this breadth, the recall is >= 0.99 for 80,000 vectors if a filter
excludes half of them."""
BATCH: Final = 64
"""Maximum number of queries in one engine call. A full call holds the GIL for about 30 ms."""
UPDATE: Final = 1_000
"""Maximum number of points in one engine update."""
PAGE: Final = 1_000
"""Maximum number of points in one page of a scroll."""


class EmbeddedEngine:
    """Stores and searches the points of past videos. The class is not thread-safe, and it raises the engine's own errors."""

    def __init__(self, path: Path, engine: qe.EdgeShard, content_dim: int, trajectory_dim: int) -> None:
        self._path = path
        self._engine = engine
        self._dims = (content_dim, trajectory_dim)
        self._sizes: dict[int, int] | None = None
        indexed = engine.info().payload_schema
        self._latest = {space: 0 for space in (CONTENT, *_buckets(indexed))}
        for space in self._latest:
            self._latest[space] = self._latest_of(space)

    @classmethod
    def create(cls, path: Path, content_dim: int, trajectory_dim: int) -> EmbeddedEngine:
        """Create an empty shard in the folder ``path``, which must not exist."""
        path.mkdir(parents=True)
        engine = qe.EdgeShard.create(str(path), _config((content_dim, trajectory_dim), []))
        engine.update(qe.UpdateOperation.create_field_index("creator_id", qe.KeywordIndexParams()))
        engine.update(_range_index(CONTENT))
        return cls(path, engine, content_dim, trajectory_dim)

    @classmethod
    def load(cls, path: Path, content_dim: int, trajectory_dim: int) -> EmbeddedEngine:
        """Load the shard in the folder ``path``."""
        new_space = _new_space(path)
        try:
            engine = qe.EdgeShard.load(str(path))
        except Exception:
            if not new_space.exists():
                raise
            buckets = [int(bucket) for bucket in new_space.read_text().split()]
            engine = _load_repaired(path, (content_dim, trajectory_dim), buckets)
        new_space.unlink(missing_ok=True)
        return cls(path, engine, content_dim, trajectory_dim)

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace the points of the videos. Their ids must be distinct."""
        points = [self._point(video) for video in videos]
        for start in range(0, len(points), UPDATE):
            self._engine.update(qe.UpdateOperation.upsert_points(points[start : start + UPDATE]))
        self._sizes = None

    def remove(self, keys: Sequence[int]) -> None:
        """Delete points. Points that do not exist are ignored."""
        self._engine.update(qe.UpdateOperation.delete_points(list(keys)))
        self._sizes = None

    def _point(self, video: BankVideo) -> qe.Point:
        vectors: dict[str, Any] = {}
        fields = payload(video)
        content = findable(video.content, video.usable_from_us, self._dims[0], "content")
        if content is not None:
            vectors[_vector(CONTENT)] = content
            self._latest[CONTENT] = max(self._latest[CONTENT], video.usable_from_us)
        for bucket, (vector, usable_us) in video.trajectories.items():
            trajectory = findable(vector, usable_us, self._dims[1], f"trajectories[{bucket}]")
            if trajectory is not None:
                self._add_space(bucket)
                vectors[_vector(bucket)] = trajectory
                fields[_usable(bucket)] = int(usable_us)
                self._latest[bucket] = max(self._latest[bucket], usable_us)
        return qe.Point(key_of(video.video_id), vectors, fields)

    def _add_space(self, bucket: int) -> None:
        if bucket not in self._latest:
            buckets = [space for space in self._latest if space != CONTENT]
            _new_space(self._path).write_text(" ".join(map(str, [*buckets, bucket])))
            create = qe.UpdateOperation.create_dense_vector(_vector(bucket), self._dims[1], qe.Distance.Dot)
            self._engine.update(create)
            self._engine.update(_range_index(bucket))
            _new_space(self._path).unlink()
            self._latest[bucket] = 0

    def nearest(self, lookups: Sequence[Lookup]) -> list[list[tuple[int, float]]]:
        """Return (key, cosine) of the points nearest to each lookup, best first."""
        sizes = self.sizes()
        # A batch may hold searches for one video at several times, with equal content vectors. Lookups that are equal
        # for the engine are sent once.
        groups: dict[tuple[int, int, int, bytes], list[int]] = {}
        for i, lookup in enumerate(lookups):
            if lookup.space in self._latest:
                key = (lookup.space, self._cut_us(lookup), lookup.limit, lookup.vector.tobytes())
                groups.setdefault(key, []).append(i)
        # The engine scores adjacent queries together if they differ only in their vector.
        distinct = sorted(groups.values(), key=lambda group: (lookups[group[0]].space, lookups[group[0]].now_us))
        hits: list[list[tuple[int, float]]] = [[] for _ in lookups]
        for start in range(0, len(distinct), BATCH):
            batch = distinct[start : start + BATCH]
            requests = [self._request(lookups[group[0]], sizes[lookups[group[0]].space]) for group in batch]
            for group, found in zip(batch, self._engine.query_batch(qe.QueryBatchRequest(requests)), strict=True):
                for i in group:
                    hits[i] = [(int(point.id), point.score) for point in found]
        return hits

    def all_usable(self, lookup: Lookup) -> bool:
        """Return whether every vector of the lookup's space is usable at the lookup's time, and therefore at any later time."""
        return self._latest.get(lookup.space, 0) <= lookup.now_us

    def _cut_us(self, lookup: Lookup) -> int:
        """Return the time to filter by, or 0 if no filter is needed.

        Most searches need no filter, because every stored vector is already usable at the search's time.
        """
        return 0 if self.all_usable(lookup) else lookup.now_us

    def _request(self, lookup: Lookup, size: int) -> qe.QueryRequest:
        cut_us = self._cut_us(lookup)
        return qe.QueryRequest(
            limit=lookup.limit,
            query=qe.Query.Nearest(lookup.vector.tolist(), using=_vector(lookup.space)),
            filter=_known_by(lookup.space, cut_us) if cut_us else None,
            params=qe.SearchParams(exact=True) if size <= EXACT_UP_TO else qe.SearchParams(hnsw_ef=HNSW_EF),
        )

    def rows(self, keys: Sequence[int]) -> dict[int, StoredVideo]:
        """Return the videos with these keys, with all their trajectories. Keys without a video are left out."""
        return {int(record.id): self._row(record) for record in self._engine.retrieve(list(keys), True, True)}

    def _row(self, record: qe.Record) -> StoredVideo:
        fields: Any = record.payload
        vectors: Any = record.vector or {}
        decoded = row(fields, vectors.get(_vector(CONTENT)))
        for bucket in _buckets(fields):
            decoded.trajectories[bucket] = (frozen(vectors[_vector(bucket)]), fields[_usable(bucket)])
        return decoded

    def present(self, keys: Sequence[int]) -> list[int]:
        """Return the keys that have a point."""
        found: list[int] = []
        for start in range(0, len(keys), PAGE):
            found += [
                int(record.id) for record in self._engine.retrieve(list(keys[start : start + PAGE]), False, False)
            ]
        return found

    def keys_by(self, creator_ids: Sequence[str]) -> list[int]:
        """Return the keys of all videos of these creators."""
        of_creators = qe.Filter(must=[qe.FieldCondition("creator_id", match=qe.MatchAny(list(creator_ids)))])
        keys: list[int] = []
        offset: Any = None
        while True:
            request = qe.ScrollRequest(
                offset=offset, limit=PAGE, filter=of_creators, with_payload=False, with_vector=False
            )
            page, offset = self._engine.scroll(request)
            keys += [int(record.id) for record in page]
            if offset is None:
                return keys

    def sizes(self) -> dict[int, int]:
        """Return the number of vectors in every space."""
        if self._sizes is None:
            self._sizes = defaultdict(int, {space: self._size(space) for space in self._latest})
        return self._sizes

    def points(self) -> int:
        """Return the number of videos."""
        return self._engine.count(qe.CountRequest(exact=True))

    def optimize(self) -> None:
        """Merge segments, purge replaced points and build graphs for large spaces. The engine holds the GIL until it has finished."""
        self._engine.optimize()

    def flush(self) -> None:
        """Make all previous writes durable."""
        self._engine.flush()

    def close(self) -> None:
        """Release the shard. Call ``flush`` first if something was written."""
        self._engine.close()

    def _size(self, space: int) -> int:
        return self._engine.count(qe.CountRequest(filter=_having(space), exact=True))

    def _latest_of(self, space: int) -> int:
        order = qe.OrderBy(_usable(space), qe.Direction.Desc)
        request = qe.ScrollRequest(limit=1, filter=_having(space), order_by=order, with_payload=[_usable(space)])
        records, _ = self._engine.scroll(request)
        fields: Any = records[0].payload if records else None
        return int(fields[_usable(space)]) if fields else 0


def _config(dims: tuple[int, int], buckets: Sequence[int]) -> qe.EdgeConfig:
    kilobytes = EXACT_UP_TO * max(dims) * 4 // 1024
    vectors = {_vector(CONTENT): qe.EdgeVectorParams(dims[0], qe.Distance.Dot)}
    vectors |= {_vector(bucket): qe.EdgeVectorParams(dims[1], qe.Distance.Dot) for bucket in buckets}
    return qe.EdgeConfig(
        vectors=vectors,
        payload_memory=qe.Memory.Cached,
        hnsw_config=qe.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=kilobytes),
        # With these thresholds, optimizing erases removed points even if there are only a few.
        optimizers=qe.EdgeOptimizersConfig(
            deleted_threshold=1e-9, vacuum_min_vector_number=1, default_segment_number=1, indexing_threshold=kilobytes
        ),
        wal_enabled=True,
    )


def rewrite(path: Path, content_dim: int, trajectory_dim: int) -> None:
    """Rewrite the shard in the folder ``path`` without the points that were removed from it. No process may have the shard open."""
    dims = content_dim, trajectory_dim
    shard = EmbeddedEngine.load(path, *dims)
    buckets = [space for space in shard.sizes() if space != CONTENT]
    shard.flush()
    shard.close()
    engine = qe.EdgeShard.load(str(path), _config(dims, buckets))
    engine.optimize()
    engine.flush()
    engine.close()
    # The write-ahead log still holds removed videos. The segments hold all remaining videos, so the log can be deleted.
    log, old = path / "wal", path / "wal.old"
    shutil.rmtree(old, ignore_errors=True)
    # The log is renamed first, so that it disappears in one step. A partly deleted log could not be read.
    log.rename(old)
    shutil.rmtree(old)


def _new_space(path: Path) -> Path:
    return path.with_name("new_space")


def _load_repaired(path: Path, dims: tuple[int, int], buckets: list[int]) -> qe.EdgeShard:
    """Load a shard that may lack the vectors of the last bucket in ``buckets``. The shard's own configuration is not read."""
    try:
        return qe.EdgeShard.load(str(path), _config(dims, buckets))
    except Exception:
        return qe.EdgeShard.load(str(path), _config(dims, buckets[:-1]))


def _vector(space: int) -> str:
    return "content" if space == CONTENT else f"t{space}"


def _having(space: int) -> qe.Filter:
    return qe.Filter(must=[qe.HasVectorCondition(_vector(space))])


def _usable(space: int) -> str:
    return "usable_from_us" if space == CONTENT else f"usable_from_us_{space}"


def _buckets(fields: Iterable[str]) -> list[int]:
    prefix = _usable(CONTENT) + "_"
    return sorted(int(field.removeprefix(prefix)) for field in fields if field.startswith(prefix))


def _range_index(space: int) -> qe.UpdateOperation:
    return qe.UpdateOperation.create_field_index(_usable(space), qe.IntegerIndexParams(lookup=False, range=True))


def _known_by(space: int, now_us: int) -> qe.Filter:
    # Every timestamp that a bank accepts is exact in float64 (see interface.NEVER_US), so this comparison is exact too.
    return qe.Filter(must=[qe.FieldCondition(_usable(space), range=qe.RangeFloat(lte=float(now_us)))])
