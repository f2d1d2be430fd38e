"""Hashed n-grams of texts in any language, and their mean embeddings."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from model.content.ngrams import BUCKETS, bag_mean, bags, ngram_ids, video_bags, well_formed
from model.engagement.video import Video

WIDE = 2**31 - 1
"""Enough buckets that the features of a short text do not collide."""


def similarity(a: str, b: str) -> float:
    x, y = set(ngram_ids(a, WIDE)), set(ngram_ids(b, WIDE))
    return len(x & y) / len(x | y)


def test_a_word_gives_the_word_and_its_ngrams_with_boundary_marks() -> None:
    assert len(ngram_ids("cat", WIDE)) == 1 + 4 + 3 + 2
    assert len(ngram_ids("a", WIDE)) == 1 + 2 + 1
    assert len(ngram_ids("cat cat, CAT!", WIDE)) == 10


def test_scripts_without_spaces_give_one_to_three_grams() -> None:
    assert len(ngram_ids("日本語", WIDE)) == 3 + 2 + 1
    assert set(ngram_ids("本", WIDE)) < set(ngram_ids("日本語", WIDE))
    assert len(ngram_ids("แมว", WIDE)) == 3 + 2 + 1


def test_variants_of_an_emoji_are_one_feature() -> None:
    assert len(ngram_ids("🎉🎉😀", WIDE)) == 2
    assert np.array_equal(ngram_ids("👍🏽"), ngram_ids("👍"))
    assert np.array_equal(ngram_ids("❤️"), ngram_ids("❤"))


def test_unicode_forms_of_one_text_are_equal() -> None:
    for other in ("ＣＡＦÉ", "cafe\u0301", "Café", "-café-"):
        assert np.array_equal(ngram_ids(other), ngram_ids("café"))
    assert np.array_equal(ngram_ids("STRASSE"), ngram_ids("straße"))


@pytest.mark.parametrize("text", ["", " ", "...", "\n", "\u200d", "\x00"])
def test_a_text_without_words_has_no_features(text: str) -> None:
    assert ngram_ids(text).shape == (0,)


def test_similar_texts_share_features() -> None:
    for a, b, c in [
        ("funny cats compilation", "funny cat compilations", "stock market news"),
        ("बिल्ली का वीडियो", "बिल्ली की वीडियो", "आज का समाचार"),
        ("أخبار اليوم", "أخبار يوم", "موسيقى"),
        ("猫の動画", "かわいい猫の動画", "株式市場"),
        ("고양이 영상", "고양이의 영상", "주식 시장"),
    ]:
        assert similarity(a, b) > 0.3 > similarity(a, c)


def test_buckets_are_the_same_in_every_process() -> None:
    assert ngram_ids("cat 日本").tolist() == [
        3732,
        4868,
        7904,
        9899,
        10590,
        10950,
        13987,
        14743,
        18163,
        19109,
        20561,
        20670,
        27998,
    ]
    assert bags(["cat"], ["Cat TV"])[0].tolist() == [
        2890,
        4868,
        7904,
        9899,
        10950,
        13987,
        14743,
        18163,
        19109,
        20670,
        21243,
        24422,
        27998,
    ]


def test_hostile_texts_are_bounded() -> None:
    assert len(ngram_ids("\ud83d lone \udc00")) > 0
    assert np.array_equal(ngram_ids("\ud83d\ude00"), ngram_ids("😀"))
    assert 0 < len(ngram_ids("x" * 10_000)) < 20
    assert 0 < len(ngram_ids("\ufdfa" * 10_000)) < 1000
    assert 0 < len(ngram_ids("".join(map(chr, range(0x20, 0x2FFFF))))) <= BUCKETS


@given(st.lists(st.text(st.characters(exclude_categories=[]), max_size=30), max_size=12))
def test_a_bag_depends_only_on_its_own_text(texts: list[str]) -> None:
    ids, offsets = bags(texts, buckets=997)
    assert ids.dtype == np.int32 and offsets.dtype == np.int64
    assert len(offsets) == len(texts) + 1
    for i, text in enumerate(texts):
        bag = ids[offsets[i] : offsets[i + 1]]
        assert np.array_equal(bag, ngram_ids(text, 997))
        assert np.array_equal(bag, np.unique(bag))
        assert not len(bag) or (bag[0] >= 0 and bag[-1] < 997)


def test_texts_in_several_chunks_keep_their_features() -> None:
    texts = [f"video {i} about topic {i % 7} " * (i % 40) for i in range(1000)]
    ids, offsets = bags(texts)
    for i in range(0, 1000, 37):
        assert np.array_equal(ids[offsets[i] : offsets[i + 1]], ngram_ids(texts[i]))


def test_a_creators_name_has_features_of_its_own_kind() -> None:
    alone, _ = bags([""], ["Cat TV"], buckets=WIDE)
    assert len(alone) == 3
    assert not set(alone) & set(ngram_ids("Cat TV", WIDE))
    other, _ = bags([""], ["Dog TV"], buckets=WIDE)
    assert len(set(alone) & set(other)) == 1
    both, _ = bags(["news"], ["Cat TV"], buckets=WIDE)
    assert set(both) == set(alone) | set(ngram_ids("news", WIDE))


def test_a_videos_bag_has_title_tags_and_creator() -> None:
    videos = [Video("a", 0, title="Cats", tags="cute", creator_name="Cat TV"), Video("b", 0)]
    ids, offsets = video_bags(videos)
    assert offsets.tolist() == [0, len(ids), len(ids)]
    assert np.array_equal(ids, bags(["Cats\ncute"], ["Cat TV"])[0])
    assert np.array_equal(video_bags(videos, creators=False)[0], ngram_ids("Cats\ncute"))


def test_arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="buckets"):
        bags(["a"], buckets=0)
    with pytest.raises(ValueError, match="creators"):
        bags(["a"], [])


def naive_mean(table: NDArray[np.float32], ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    out = np.zeros((len(offsets) - 1, table.shape[1]))
    for i in range(len(out)):
        if offsets[i + 1] > offsets[i]:
            out[i] = table[ids[offsets[i] : offsets[i + 1]]].astype(np.float64).mean(axis=0)
    return out


@pytest.mark.parametrize("dim", [1, 8, 33])
def test_bag_mean_equals_the_mean_of_the_rows(dim: int) -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(500, dim)).astype(np.float32)
    sizes = rng.integers(0, 60, 2000)
    sizes[[0, 700, 1999]] = 0, 20_000, 0
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    ids = rng.integers(0, 500, offsets[-1]).astype(np.int32)
    means = bag_mean(table, ids, offsets)
    assert means.dtype == np.float32
    np.testing.assert_allclose(means, naive_mean(table, ids, offsets), atol=1e-5)
    for i in (0, 1, 5, 699, 700, 701, 1998, 1999):
        own = ids[offsets[i] : offsets[i + 1]]
        alone = bag_mean(table, own, np.array([0, len(own)]))
        assert np.array_equal(means[i], alone[0]), "a row must not depend on the others"


def test_the_mean_of_an_empty_bag_is_zero() -> None:
    table = np.ones((4, 3), dtype=np.float32)
    empty = np.zeros(0, dtype=np.int32)
    assert bag_mean(table, empty, np.array([0])).shape == (0, 3)
    assert bag_mean(table, empty, np.array([0, 0, 0])).tolist() == [[0, 0, 0]] * 2


@given(st.text(st.characters(exclude_categories=[])))
def test_a_well_formed_text_can_be_encoded(text: str) -> None:
    out = well_formed(text)
    out.encode()
    if not any("\ud800" <= c <= "\udfff" for c in text):
        assert out == text
