"""Time of text features.

    python -m benchmarks.components.text [DATA] [--texts 1000]

DATA is a data set in the canonical format; without it the titles are invented. Prints microseconds of wall time per text, the best of
three passes, for the sentence encoder (one text at a time; for comparison the packaged graph on padded batches of 8) and for hashed
n-grams. Compare only runs on the same idle machine.
"""

from __future__ import annotations

import argparse
import os
import platform
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from model.content import minilm
from model.content.ngrams import BUCKETS, bag_mean, bags, ngram_ids
from model.content.text import MAX_TOKENS, SentenceEncoder

WORDS = ("the", "of", "new", "video", "live", "music", "official", "cat", "cook", "how", "to", "news", "funny", "game")


def read_texts(data: Path | None, count: int) -> tuple[list[str], list[str]]:
    """Titles, and titles with tags, of distinct random videos."""
    draw = random.Random(0)
    if data is None:
        titles = [" ".join(draw.choices(WORDS, k=draw.randint(4, 14))) + f" {i}" for i in range(count)]
        return titles, [f"{title}\n{', '.join(draw.choices(WORDS, k=20))}" for title in titles]
    path = data / "videos.parquet"
    columns = [c for c in ("title", "tags") if c in pq.read_schema(path).names]
    rows = pq.read_table(path, columns=columns).to_pylist()
    rows = draw.sample(rows, min(count, len(rows)))
    titles = [row.get("title") or "" for row in rows]
    return titles, [f"{title}\n{row.get('tags') or ''}" for title, row in zip(titles, rows, strict=True)]


def packaged_batches(texts: list[str], size: int = 8) -> Callable[[], None]:
    """The package's own graph, which computes in float32, on padded batches of texts of similar length."""
    tokenizer = Tokenizer.from_buffer(minilm.tokenizer_bytes())
    tokenizer.enable_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(minilm.model_bytes(), options, providers=["CPUExecutionProvider"])
    by_length = sorted(texts, key=len)

    def run() -> None:
        for start in range(0, len(by_length), size):
            encoded = tokenizer.encode_batch(by_length[start : start + size])
            ids = np.array([e.ids for e in encoded])
            mask = np.array([e.attention_mask for e in encoded])
            session.run(None, {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)})

    return run


def one_by_one(texts: list[str]) -> list[object]:
    return [ngram_ids(text) for text in texts]


def report(name: str, run: Callable[[], object], count: int) -> None:
    best = float("inf")
    for _ in range(3):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    print(f"{name:<52}{best / count * 1e6:>10.1f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", nargs="?", type=Path)
    parser.add_argument("--texts", type=int, default=1000)
    args = parser.parse_args()
    titles, full = read_texts(args.data, args.texts)
    print(f"{platform.machine()}, {os.cpu_count()} CPUs, onnxruntime {ort.__version__}, {len(titles)} texts")
    print(f"{'':<52}{'us/text':>10}")
    for name, texts in (("titles", titles), ("titles and tags", full)):
        for workers in (1, 2):
            encoder = SentenceEncoder(workers)
            report(f"encoder, {workers} worker(s), {name}", partial(encoder.encode, texts), len(texts))
        report(f"packaged graph, batches of 8, {name}", packaged_batches(texts), len(texts))
        report(f"n-grams, bulk, {name}", partial(bags, texts), len(texts))
        report(f"n-grams, one by one, {name}", partial(one_by_one, texts), len(texts))
    table = np.random.default_rng(0).normal(size=(BUCKETS, 64)).astype(np.float32)
    ids, offsets = bags(full)
    report("bag mean, 64 dimensions, titles and tags", lambda: bag_mean(table, ids, offsets), len(full))


if __name__ == "__main__":
    main()
