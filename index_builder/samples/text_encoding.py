"""Encodes the texts of many videos to sentence vectors, in separate processes.

The embedded bank holds Python's global interpreter lock while it searches. An encoder in a thread of the same process
would be blocked during each search.
"""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from itertools import islice
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.content.text import SentenceEncoder, text_of
from model.engagement.video import Video

WORTH_A_PROCESS: Final = 2_000
"""Number of texts that take longer to encode than a process takes to start."""
_AHEAD: Final = 4
"""Maximum number of chunks per process that are submitted and not yet read. This maximum limits the memory in use."""

_encoder: SentenceEncoder | None = None


def _start() -> None:
    global _encoder
    _encoder = SentenceEncoder(workers=1)


def _encode(texts: list[str]) -> NDArray[np.float32]:
    assert _encoder is not None
    return _encoder.encode(texts)


def sentences(chunks: Iterable[Sequence[Video]], processes: int | None = None) -> Generator[NDArray[np.float32]]:
    """Yield the sentence vectors (len(chunk), 384) float32 of each chunk of videos, in order.

    Chunks are encoded before the caller asks for them.

    Args:
        chunks: lists of videos. A few chunks are read at a time.
        processes: number of encoding processes, >= 1. None starts one process per core.
    """
    count = processes or len(os.sched_getaffinity(0))
    source = iter(chunks)
    with ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), _start) as pool:
        waiting: deque[Future[NDArray[np.float32]]] = deque()
        while True:
            for chunk in islice(source, count * _AHEAD - len(waiting)):
                waiting.append(pool.submit(_encode, [text_of(video) for video in chunk]))
            if not waiting:
                return
            yield waiting.popleft().result()
