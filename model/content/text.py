"""A video's text as one vector, computed by a pretrained sentence encoder.

MiniLM works best for English. In other languages its vectors are consistent but carry little meaning. For these
languages, the meaning comes from the trained n-gram embedding (``ngrams.py``). Each text is encoded separately, so
its vector does not depend on other texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from tokenizers import Tokenizer

from model.content import minilm
from model.content.ngrams import well_formed
from model.engagement.video import Video

__all__ = ["ENCODER_ID", "MAX_TOKENS", "TEXT_DIM", "SentenceEncoder", "text_of"]

TEXT_DIM: Final = minilm.DIM
MAX_TOKENS: Final = 24
"""Maximum number of tokens that are read from a text, including the start and end tokens. The median title has 18."""

ENCODER_ID: Final = f"minilm-l6-v2-int8-{MAX_TOKENS}-tokens:sha256:{minilm.MODEL_SHA256}"
"""Id of the encoder. Vectors with the same encoder id are comparable. A different model file, tokenizer or MAX_TOKENS
needs a different id."""

_MAX_CHARACTERS: Final = 400
_DESCRIPTION_CHARACTERS: Final = 200
_BULK: Final = 16
"""Minimum number of distinct texts for which a call uses several threads."""


def text_of(video: Video) -> str:
    """Return the title, the tags and the start of the description, one per line. Return "" if the video has none of them."""
    parts = (video.title, video.tags, (video.description or "")[:_DESCRIPTION_CHARACTERS])
    return "\n".join(part.strip() for part in parts if part and part.strip())


class SentenceEncoder:
    """Encodes texts on the CPU. An encoder is thread-safe. Loading one takes about 0.3 s and 60 MB of memory.

    Args:
        workers: number of texts that are encoded at the same time in a bulk call, >= 1. Each text uses one core.

    Raises:
        BundleError: a package with the weights or the tokenizer is missing or has a different version.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self._workers = workers
        self._tokenizer = Tokenizer.from_buffer(minilm.tokenizer_bytes())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        options = ort.SessionOptions()
        # Each text is encoded on one core. Several texts are encoded at once instead, which scales better and avoids busy waiting.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        graph = minilm.encoder_graph(minilm.model_bytes())
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Return unit vectors of the texts, (N, 384) float32. Any string is accepted. Equal texts are encoded once.

        The vector of "" has no meaning, so the caller must mask a video without text.
        """
        rows = {text: row for row, text in enumerate(dict.fromkeys(texts))}
        if len(rows) >= _BULK and self._workers > 1:
            with ThreadPoolExecutor(self._workers) as pool:
                vectors = list(pool.map(self._encode_one, rows))
        else:
            vectors = [self._encode_one(text) for text in rows]
        distinct = np.array(vectors, dtype=np.float32).reshape(-1, TEXT_DIM)
        return distinct[[rows[text] for text in texts]]

    def _encode_one(self, text: str) -> NDArray[np.float32]:
        tokens = self._tokenizer.encode(well_formed(text[:_MAX_CHARACTERS]))
        mean: NDArray[np.float32] = self._session.run(None, {"ids": np.array([tokens.ids], dtype=np.int64)})[0][0]
        unit: NDArray[np.float32] = mean / np.sqrt(np.square(mean).sum())
        return unit
