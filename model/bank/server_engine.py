"""The two collections of a bank on a Qdrant server, which store videos as points.

``content`` has one point per video, with the whole payload. ``trajectory`` has one point per pair of video and age
bucket, with only the fields that are needed for filters. A point's id is a UUID. The UUID consists of a 15-byte
digest of the video's id and one last byte. The last byte is 0 for content, and the bucket plus 1 for a trajectory. So
the id of one point of a video gives the ids of its other points. A video's key is the id of its content point.

Vectors are stored with unit length. So the dot product is the cosine, and the engine does not change the vectors' bits.

Readers use the aliases ``{prefix}_content`` and ``{prefix}_trajectory``. A fill writes into new collections and moves
the aliases when it is finished. So readers never see an unfinished bank.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from qdrant_client import QdrantClient, models

from model.bank.interface import BankVideo
from model.bank.search import CONTENT, Lookup
from model.bank.stored_video import StoredVideo, frozen, payload, row
from model.bank.tombstone import server_key_of as key_of
from model.bank.validation import MAX_AGE_BUCKET, findable
from model.errors import BankError

EXACT_UP_TO: Final = 25_000
"""Maximum number of points in a space that is searched by a scan, which is exact. Larger spaces are searched with a
graph, which is approximate."""
HNSW_EF: Final = 256
"""Search breadth of the graph in larger spaces."""
PAGE: Final = 1_000
"""Maximum number of points in one page of a scroll."""
FORGET_VIDEOS: Final = 16
"""Maximum number of videos whose trajectories are deleted in one call."""
BUCKETS: Final = MAX_AGE_BUCKET + 1
KINDS: Final = ("content", "trajectory")


@dataclass(frozen=True, slots=True)
class ServerEngine:
    """The two collections of a bank, named directly or by their aliases.

    ``names`` holds the two names, and ``dims`` holds the dimensions of the vectors. Both are in the order (content,
    trajectory).
    """

    client: QdrantClient
    names: tuple[str, str]
    dims: tuple[int, int]

    def nearest(self, lookups: Sequence[Lookup], sizes: dict[int, int]) -> list[list[tuple[str, float]]]:
        """Return (key, cosine) of the points nearest to each lookup, best first. ``sizes`` maps a space to its number of points."""
        hits: list[list[tuple[str, float]]] = [[] for _ in lookups]
        for kind, name in enumerate(self.names):
            chosen = [i for i, lookup in enumerate(lookups) if (lookup.space != CONTENT) == bool(kind)]
            if chosen:
                requests = [_request(lookups[i], sizes[lookups[i].space]) for i in chosen]
                for i, answer in zip(chosen, self.client.query_batch_points(name, requests), strict=True):
                    hits[i] = [(_point_id(str(point.id), CONTENT), point.score) for point in answer.points]
        return hits

    def contents(self, keys: Sequence[str]) -> dict[str, StoredVideo]:
        """Return the videos with these keys, without trajectories. Keys without a video are left out."""
        records = self.client.retrieve(self.names[0], list(keys), with_payload=True, with_vectors=True)
        return {str(record.id): _row(record) for record in records}

    def add_trajectories(self, rows: dict[str, StoredVideo], wanted: Sequence[tuple[str, int]]) -> None:
        """Add to ``rows`` the trajectories of the wanted pairs of key and age bucket. A missing trajectory is added as None."""
        ids = {_point_id(key, bucket): (key, bucket) for key, bucket in wanted}
        found: dict[tuple[str, int], tuple[NDArray[np.float32], int]] = {}
        for record in self.client.retrieve(self.names[1], list(ids), with_payload=True, with_vectors=True):
            vectors: Any = record.vector
            fields: Any = record.payload
            found[ids[str(record.id)]] = (frozen(vectors["trajectory"]), fields["usable_from_us"])
        for key, bucket in wanted:
            rows[key].trajectories[bucket] = found.get((key, bucket))

    def rows_by(self, creator_ids: Sequence[str]) -> dict[str, StoredVideo]:
        """Return all videos of these creators by key, without trajectories."""
        rows: dict[str, StoredVideo] = {}
        offset: Any = None
        while True:
            page, offset = self.client.scroll(
                self.names[0], _any_of("creator_id", creator_ids), PAGE, offset=offset, with_vectors=True
            )
            rows.update({str(record.id): _row(record) for record in page})
            if offset is None:
                return rows

    def upsert(self, videos: Sequence[BankVideo]) -> None:
        """Add or replace the points of the videos. Their ids must be distinct."""
        contents = []
        trajectories = []
        for video in videos:
            key = key_of(video.video_id)
            content = findable(video.content, video.usable_from_us, self.dims[0], "content")
            vectors: Any = {} if content is None else {"content": content}
            contents.append(models.PointStruct(id=key, vector=vectors, payload=payload(video)))
            for bucket, (vector, usable_us) in video.trajectories.items():
                trajectory = findable(vector, usable_us, self.dims[1], f"trajectories[{bucket}]")
                if trajectory is not None:
                    fields = {
                        "video_id": video.video_id,
                        "age_bucket": int(bucket),
                        "usable_from_us": int(usable_us),
                    }
                    vectors = {"trajectory": trajectory}
                    trajectories.append(models.PointStruct(id=_point_id(key, bucket), vector=vectors, payload=fields))
        self.client.upsert(self.names[0], contents)
        stale = _any_of("video_id", [video.video_id for video in videos])
        operations: list[Any] = []
        if trajectories:
            operations.append(models.UpsertOperation(upsert=models.PointsList(points=trajectories)))
            stale.must_not = [models.HasIdCondition(has_id=[point.id for point in trajectories])]
        operations.append(models.DeleteOperation(delete=models.FilterSelector(filter=stale)))
        self.client.batch_update_points(self.names[1], operations)

    def remove(self, video_ids: Sequence[str]) -> None:
        """Delete the points of the videos. Videos that are not stored are ignored."""
        self.client.delete(self.names[0], models.PointIdsList(points=[key_of(video_id) for video_id in video_ids]))
        self.client.delete(self.names[1], models.FilterSelector(filter=_any_of("video_id", list(video_ids))))

    def forget(self, keys: Sequence[str]) -> None:
        """Delete the points of the videos with these keys. Keys that are not stored are ignored."""
        self.client.delete(self.names[0], models.PointIdsList(points=list(keys)))
        for start in range(0, len(keys), FORGET_VIDEOS):
            points = [
                _point_id(key, bucket) for key in keys[start : start + FORGET_VIDEOS] for bucket in range(BUCKETS)
            ]
            self.client.delete(self.names[1], models.PointIdsList(points=list(points)))

    def size(self, space: int, *, exact: bool = False) -> int:
        """Return the number of points in a space. The number is an estimate unless ``exact`` is true."""
        if space == CONTENT:
            return self.client.count(self.names[0], exact=exact).count
        return self.client.count(self.names[1], models.Filter(must=[_in_bucket(space)]), exact=exact).count

    def totals(self) -> tuple[int, int]:
        """Return the exact number of points in each of the two collections."""
        return self.client.count(self.names[0]).count, self.client.count(self.names[1]).count

    def indexing(self) -> tuple[bool, int, int]:
        """Return whether the server has finished optimizing, the number of indexed vectors, and the number of points."""
        infos = [self.client.get_collection(name) for name in self.names]
        done = all(info.status == models.CollectionStatus.GREEN for info in infos)
        return done, sum(i.indexed_vectors_count or 0 for i in infos), sum(i.points_count or 0 for i in infos)


def create(client: QdrantClient, prefix: str, dims: tuple[int, int]) -> ServerEngine:
    """Create two empty collections. No alias points to them yet."""
    fill = f"{time.time_ns():x}"
    engine = ServerEngine(client, (f"{prefix}_content_{fill}", f"{prefix}_trajectory_{fill}"), dims)
    integer = models.IntegerIndexParams(type=models.IntegerIndexType.INTEGER, lookup=False, range=True)
    indexes: tuple[dict[str, Any], ...] = (
        {"usable_from_us": integer, "creator_id": models.PayloadSchemaType.KEYWORD},
        {
            "usable_from_us": integer,
            "age_bucket": models.PayloadSchemaType.INTEGER,
            "video_id": models.PayloadSchemaType.KEYWORD,
        },
    )
    for kind, name, dim, fields in zip(KINDS, engine.names, dims, indexes, strict=True):
        params = models.VectorParams(size=dim, distance=models.Distance.DOT)
        client.create_collection(name, vectors_config={kind: params})
        for field, schema in fields.items():
            client.create_payload_index(name, field, schema)
    return engine


def publish(filled: ServerEngine, prefix: str) -> None:
    """Move the aliases to ``filled`` in one step. Then delete the collections of all other fills with this prefix."""
    aliases = _aliases(filled.client)
    changes: list[Any] = []
    for kind, name in zip(KINDS, filled.names, strict=True):
        alias = f"{prefix}_{kind}"
        if alias in aliases:
            changes.append(models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)))
        create_alias = models.CreateAlias(collection_name=name, alias_name=alias)
        changes.append(models.CreateAliasOperation(create_alias=create_alias))
    filled.client.update_collection_aliases(changes)
    fill = re.compile(rf"{re.escape(prefix)}_({'|'.join(KINDS)})_[0-9a-f]+")
    for collection in filled.client.get_collections().collections:
        if fill.fullmatch(collection.name) and collection.name not in filled.names:
            filled.client.delete_collection(collection.name)


def find(client: QdrantClient, prefix: str, dims: tuple[int, int]) -> ServerEngine:
    """Find the finished bank with this prefix by its aliases. Raise BankError if it is missing or has different dimensions."""
    aliases = _aliases(client)
    for kind, dim in zip(KINDS, dims, strict=True):
        alias = f"{prefix}_{kind}"
        if alias not in aliases:
            raise BankError(f"no finished bank {prefix!r}: the alias {alias!r} is missing; fill it first")
        vectors: Any = client.get_collection(aliases[alias]).config.params.vectors
        if kind not in vectors or vectors[kind].size != dim:
            raise BankError(f"bank {prefix!r}: {alias} holds {vectors}; expected {kind!r} vectors of size {dim}")
    return ServerEngine(client, (f"{prefix}_content", f"{prefix}_trajectory"), dims)


def drop(engine: ServerEngine) -> None:
    """Delete both collections."""
    for name in engine.names:
        engine.client.delete_collection(name)


def _aliases(client: QdrantClient) -> dict[str, str]:
    return {alias.alias_name: alias.collection_name for alias in client.get_aliases().aliases}


def _point_id(key: str, space: int) -> str:
    return f"{key[:-2]}{space + 1:02x}"


def _row(record: models.Record) -> StoredVideo:
    fields: Any = record.payload
    vectors: Any = record.vector or {}
    return row(fields, vectors.get("content"))


def _request(lookup: Lookup, size: int) -> models.QueryRequest:
    # Every timestamp that a bank accepts is exact in float64 (see interface.NEVER_US), so this comparison is exact too.
    must: list[Any] = [models.FieldCondition(key="usable_from_us", range=models.Range(lte=float(lookup.now_us)))]
    if lookup.space != CONTENT:
        must.append(_in_bucket(lookup.space))
    exact = size <= EXACT_UP_TO
    return models.QueryRequest(
        query=lookup.vector.tolist(),
        using=KINDS[lookup.space != CONTENT],
        filter=models.Filter(must=must),
        params=models.SearchParams(exact=True) if exact else models.SearchParams(hnsw_ef=HNSW_EF),
        limit=lookup.limit,
        with_payload=False,
        with_vector=False,
    )


def _in_bucket(bucket: int) -> models.FieldCondition:
    return models.FieldCondition(key="age_bucket", match=models.MatchValue(value=bucket))


def _any_of(field: str, values: Sequence[str]) -> models.Filter:
    return models.Filter(must=[models.FieldCondition(key=field, match=models.MatchAny(any=list(values)))])
