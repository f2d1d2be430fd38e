"""Computes the arrays that the network reads in training: token sequences, samples, content inputs and creator features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.dataset import DataSet
from index_builder.datasets.observed import Observed
from index_builder.samples.exposure import Exposure
from index_builder.samples.samples import Samples
from index_builder.samples.text_encoding import WORTH_A_PROCESS, sentences
from model.content.ngrams import video_bags
from model.content.text import SentenceEncoder, text_of
from model.engagement.rows import cells_at
from model.engagement.video import Video
from model.features.creator import N_CREATOR, creator_features
from model.features.schema import Schema
from model.features.tokens import Tokens, tokenize
from model.growth.curve_kernels import growth_horizons_us
from model.growth.curves import Curves

_CHUNK = 500


@dataclass(frozen=True, slots=True)
class ContentInputs:
    """Inputs of the content network for V videos.

    ``sentence`` (V, 384) float32: sentence vectors of the texts.
    ``ngram_ids`` (total,) int32 and ``ngram_offsets`` (V + 1,) int64: bags of n-grams. Video v has
    ``ngram_ids[ngram_offsets[v]:ngram_offsets[v + 1]]``.
    ``category`` and ``language`` (V,) int64: codes.
    ``static`` (V, N_STATIC) float32: static features.
    ``attributes`` (V, width) float32: features of the attributes, of width 0 if the schema declares none.
    """

    sentence: NDArray[np.float32]
    ngram_ids: NDArray[np.int32]
    ngram_offsets: NDArray[np.int64]
    category: NDArray[np.int64]
    language: NDArray[np.int64]
    static: NDArray[np.float32]
    attributes: NDArray[np.float32]


def encode_text(videos: Sequence[Video], advance: Callable[[int], None] | None = None) -> NDArray[np.float32]:
    """Return the sentence vectors (V, 384) of the videos' text.

    ``advance`` is called with the number of videos just encoded.
    """
    chunks = [videos[i : i + _CHUNK] for i in range(0, len(videos), _CHUNK)]
    few = len(videos) < WORTH_A_PROCESS
    encoder = SentenceEncoder() if few else None
    encoded = (
        (encoder.encode([text_of(v) for v in chunk]) for chunk in chunks) if encoder is not None else sentences(chunks)
    )
    parts = []
    for part in encoded:
        parts.append(part)
        if advance:
            advance(len(part))
    return np.concatenate(parts) if parts else np.zeros((0, 384), np.float32)


def content_inputs(
    videos: Sequence[Video], schema: Schema, sentence: NDArray[np.float32] | None = None
) -> ContentInputs:
    """Return the content inputs of videos. Pass ``sentence`` (V, 384) if the text is already encoded."""
    ids, offsets = video_bags(videos)
    return ContentInputs(
        encode_text(videos) if sentence is None else sentence,
        ids,
        offsets,
        np.array([schema.category(v) for v in videos], dtype=np.int64),
        np.array([schema.language(v) for v in videos], dtype=np.int64),
        schema.static(videos),
        schema.attribute_features(videos),
    )


@numba.njit(cache=True)
def _creator_rows(past, starts, ends, video, now_us, ages, values, lengths, published, horizons, pace, base, out):  # type: ignore[no-untyped-def]
    for i in range(len(video)):
        v = video[i]
        creator_features(
            past[starts[v] : ends[v]],
            ages,
            values,
            lengths,
            published,
            now_us[i],
            now_us[i] - published[v],
            horizons,
            pace,
            base,
            out[i],
        )


def creator_codes(videos: Sequence[Video]) -> NDArray[np.int64]:
    """Return a code (V,) int64 for each video's creator. The code is -1 if the video has no creator."""
    codes: dict[str, int] = {}
    return np.array(
        [codes.setdefault(v.creator_id, len(codes)) if v.creator_id else -1 for v in videos], dtype=np.int64
    )


def creator_rows(
    videos: Sequence[Video],
    published_us: NDArray[np.int64],
    curves: Curves,
    video: NDArray[np.int64],
    now_us: NDArray[np.int64],
    max_horizon_us: int,
    bank_videos: int,
) -> NDArray[np.float32]:
    """Return the creator features (N, N_CREATOR) float32 of N pairs of (video, now).

    The features come from videos of the same creator that were published before the video. Of all earlier videos, only
    the newest ``bank_videos`` are considered, because a bank contains at most ``bank_videos`` videos. ``videos`` are
    sorted by publication.
    """
    creator = creator_codes(videos)
    order = np.lexsort((np.arange(len(videos)), published_us, creator))
    starts, ends = np.zeros(len(videos), np.int64), np.zeros(len(videos), np.int64)
    first = 0
    for at, v in enumerate(order.tolist()):
        if at and creator[order[at - 1]] != creator[v]:
            first = at
        while v - order[first] > bank_videos:
            first += 1
        starts[v], ends[v] = first, at if creator[v] >= 0 else first
    out = np.zeros((len(video), N_CREATOR), dtype=np.float32)
    _creator_rows(
        order,
        starts,
        ends,
        video,
        now_us,
        curves.ages_us,
        curves.values,
        curves.lengths,
        published_us,
        growth_horizons_us(max_horizon_us),
        curves.pace,
        curves.base,
        out,
    )
    return out


@dataclass(frozen=True, slots=True)
class Corpus:
    """All inputs of training: token sequences of all videos, samples with their creator features, and content inputs.

    ``exposure``: what the likelihood scores of the tokens.
    ``pace`` (n + 1, K, M, 2) float32: pace after each of n tokens, then the pace without any token. ``model.mhp.pace``
    explains the pace.
    """

    tokens: Tokens
    exposure: Exposure
    pace: NDArray[np.float32]
    samples: Samples
    creator: NDArray[np.float32]
    content: ContentInputs


def token_sequences(observed: Observed, until_us: int) -> Tokens:
    """Return the tokens of every video from rows up to ``until_us``."""
    published = observed.data.published_us
    every = np.arange(len(published))
    now = np.maximum(np.full(len(published), until_us), published)
    n_types = len(observed.data.types)
    return tokenize(
        cells_at(observed.events, observed.counters, every, now, published, n_types), published, now, n_types
    )


@dataclass(frozen=True, slots=True)
class SampleSet:
    """N samples with their creator features (N, N_CREATOR) float32."""

    samples: Samples
    creator: NDArray[np.float32]

    @staticmethod
    def of(data: DataSet, known: Curves, samples: Samples, max_horizon_us: int, bank_videos: int) -> SampleSet:
        """Return the samples with their creator features.

        The features come from ``known``, the growth curves of all videos.
        """
        return SampleSet(
            samples,
            creator_rows(
                data.videos, data.published_us, known, samples.video, samples.now_us, max_horizon_us, bank_videos
            ),
        )

    def take(self, rows: NDArray[Any]) -> SampleSet:
        """Return the samples that ``rows`` selects."""
        return SampleSet(self.samples.take(rows), self.creator[rows])

    def __len__(self) -> int:
        return len(self.samples.video)
