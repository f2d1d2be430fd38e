"""A video's text as one vector, by a pretrained sentence encoder.

MiniLM knows English best. For other languages its vector is consistent but carries little meaning; that comes from the trained n-gram
embedding (``ngrams.py``). Texts are run one by one, so a vector depends only on its own text.
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
"""Tokens read from a text, including its two markers; the median title has 18."""

ENCODER_ID: Final = f"minilm-l6-v2-int8-{MAX_TOKENS}-tokens:sha256:{minilm.MODEL_SHA256}"
"""Vectors with the same id are comparable. Another model file, tokenizer or MAX_TOKENS must have another id."""

_MAX_CHARACTERS: Final = 400
_DESCRIPTION_CHARACTERS: Final = 200
_BULK: Final = 16
"""Number of distinct texts from which a call uses several threads."""


def text_of(video: Video) -> str:
    """Title, tags and the start of the description, one per line; "" if the video has none of them."""
    parts = (video.title, video.tags, (video.description or "")[:_DESCRIPTION_CHARACTERS])
    return "\n".join(part.strip() for part in parts if part and part.strip())


class SentenceEncoder:
    """Encodes texts on the CPU; thread-safe. Loading takes about 0.3 s and 60 MB.

    Args:
        workers: number of texts of a bulk call that run at the same time, >= 1; each uses one core.

    Raises:
        BundleError: a package with the weights or the tokenizer is missing or has another version.
    """

    def __init__(self, workers: int = 2) -> None:
        if workers < 1:
            raise ValueError(f"workers must be at least 1, not {workers}")
        self._workers = workers
        self._tokenizer = Tokenizer.from_buffer(minilm.tokenizer_bytes())
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(MAX_TOKENS)
        options = ort.SessionOptions()
        # One core for each run. Parallelism comes from running several texts at once, which scales better and does not spin.
        options.intra_op_num_threads = 1
        options.inter_op_num_threads = 1
        graph = minilm.encoder_graph(minilm.model_bytes())
        self._session = ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def encode(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Unit vectors of the texts, (N, 384) float32. Any string is accepted; equal texts run once.

        The vector of "" has no meaning: the caller must mask a video without text.
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
