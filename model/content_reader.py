"""Reads the content of videos with a bundle's content network, and caches it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from model.bundle import Bundle
from model.content.ngrams import bag_mean, video_bags
from model.content.text import SentenceEncoder, text_of
from model.engagement.video import Video
from model.lru_cache import LRUCache
from model.onnx_graph import Graph

_CACHE: Final = 20_000
"""Maximum number of videos whose content is cached."""


class Content(NamedTuple):
    """The content of N videos.

    ``vectors`` (N, content_dim) float32: content vectors.
    ``components`` (N, N_COMPONENTS) float32: principal components of the text, for the trees. The width is 0 without trees.
    """

    vectors: NDArray[np.float32]
    components: NDArray[np.float32]


class ContentReader:
    """Reads content. The metadata of a video is its key in the cache. ``projection`` (D, N_COMPONENTS) is that of the trees."""

    def __init__(self, bundle: Bundle, encoder: SentenceEncoder, projection: NDArray[np.float32] | None) -> None:
        self._schema, self._table, self._encoder = bundle.manifest.schema, bundle.weights["ngrams.weight"], encoder
        self._graph = Graph(bundle.path / "content.onnx")
        self._projection = projection
        self._cached: LRUCache[Video, tuple[NDArray[np.float32], NDArray[np.float32]]] = LRUCache(_CACHE)

    def read(self, videos: Sequence[Video], sentence: NDArray[np.float32] | None = None) -> Content:
        """Return the content of the videos. Pass ``sentence`` (N, D), their encoded texts, to avoid encoding them again."""
        known = {video: self._cached.get(video) for video in dict.fromkeys(videos)}
        new = [video for video, content in known.items() if content is None]
        if new:
            if sentence is None:
                encoded = self._encoder.encode([text_of(video) for video in new])
            else:
                rows = {v: i for i, v in enumerate(videos)}
                encoded = sentence[[rows[v] for v in new]]
            for video, vector, components in zip(
                new, self._vectors(new, encoded), self._components(encoded), strict=True
            ):
                known[video] = vector, components
                self._cached.put(video, (vector, components))
        every = [content for video in videos if (content := known[video]) is not None]
        return Content(np.stack([vector for vector, _ in every]), np.stack([components for _, components in every]))

    def _vectors(self, videos: Sequence[Video], encoded: NDArray[np.float32]) -> NDArray[np.float32]:
        schema = self._schema
        static = schema.static(videos)
        return self._graph(
            {
                "sentence": encoded,
                "ngrams": bag_mean(self._table, *video_bags(videos, buckets=len(self._table))),
                "has_text": np.ascontiguousarray(static[:, 4:5]),
                "category": np.array([schema.category(v) for v in videos], dtype=np.int64),
                "language": np.array([schema.language(v) for v in videos], dtype=np.int64),
                "static": static,
            }
        )

    def _components(self, encoded: NDArray[np.float32]) -> NDArray[np.float32]:
        if self._projection is None:
            return np.zeros((len(encoded), 0), np.float32)
        # Without optimisation, einsum sums each row in one fixed order, so a row's result does not depend on the batch.
        out: NDArray[np.float32] = np.einsum("nd,dk->nk", encoded, self._projection, optimize=False)
        return out
