"""Texts in any language as bags of hashed n-grams.

A text is normalised (NFKC and case folding) and split into runs of characters of the same kind. The features of a run
are:

    words of scripts with spaces                    the word, and its 2- to 4-grams with boundary marks
    scripts without spaces (Chinese, Thai, ...)     1- to 3-grams
    symbols (emoji, signs)                          each symbol alone

Every feature is hashed to 64 bits. The hash uses only constants of this file, so a hash bucket has the same meaning
in every OS process. The hashes of all substrings come from prefix sums of a polynomial modulo 2^64:

    hash(s, e) = (S[e] - S[s]) / P^s,    S[i] = sum over j < i of code[j] P^j

P is odd, so the division is exact.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model.engagement.video import Video

__all__ = ["BUCKETS", "bag_mean", "bags", "ngram_ids", "video_bags", "well_formed"]

BUCKETS: Final = 2**15
MAX_CHARACTERS: Final = 4096
"""Maximum number of characters that are read from a text. This limit bounds the work for hostile input."""

_CHUNK_CHARACTERS: Final = 2**16
_BLOCK_IDS: Final = 2**14
_P: Final = 0x9E3779B97F4A7C15
_P_INVERSE: Final = pow(_P, -1, 2**64)
_WORD_NGRAMS: Final = (2, 3, 4)
_RUN_NGRAMS: Final = (1, 2, 3)

_IGNORED, _SEPARATOR, _WORD, _UNSPACED, _SYMBOL = range(5)
_BOUNDARY: Final = ord(" ")
"""Code that marks the edges of a word. This code never occurs inside a run."""

_SEED_WORD: Final = 1
_SEED_CREATOR: Final = 2
_SEED_CREATOR_WORD: Final = 3
_SEED_NGRAM: Final = 16
"""The seed of n-grams is this number plus n, plus 8 for scripts without spaces."""

_UNSPACED_BLOCKS: Final = (
    (0x0E00, 0x0F00),  # Thai, Lao
    (0x0F00, 0x10A0),  # Tibetan, Burmese
    (0x1780, 0x1800),  # Khmer
    (0x2E80, 0x3130),  # radicals, kana, Bopomofo
    (0x31A0, 0x3200),  # Bopomofo, strokes, kana
    (0x3400, 0xA000),  # Han
    (0xF900, 0xFB00),  # Han
    (0x1B000, 0x1B170),  # kana
    (0x20000, 0x40000),  # Han
)
_TABLED: Final = 0x40000


def well_formed(text: str) -> str:
    """Return the text in a form that UTF-8 can encode. Surrogate pairs are joined, and lone surrogates are replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def ngram_ids(text: str, buckets: int = BUCKETS) -> NDArray[np.int32]:
    """Return the text's features: an int32 array (n,) of sorted, unique bucket numbers in 0 .. buckets - 1."""
    return bags([text], buckets=buckets)[0]


def video_bags(
    videos: Sequence[Video], *, creators: bool = True, buckets: int = BUCKETS
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return one bag per video with the features of its title and tags, and of its creator's name if ``creators`` is true.

    The features of the name are hashed separately from the features of the text. The result has the form that
    ``bags`` describes.
    """
    texts = [f"{video.title or ''}\n{video.tags or ''}" for video in videos]
    names = [video.creator_name or "" for video in videos] if creators else None
    return bags(texts, names, buckets=buckets)


def bags(
    texts: Sequence[str], creators: Sequence[str] | None = None, *, buckets: int = BUCKETS
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Return the features of each text. If ``creators`` is given, the features of the creator's name are added.

    Returns:
        ``ids`` (total,) int32 and ``offsets`` (N + 1,) int64. Text i has the ids from ``offsets[i]`` to
        ``offsets[i + 1]`` (exclusive). A text's ids are sorted and unique, and they do not depend on the other texts.
    """
    if not 0 < buckets < 2**31:
        raise ValueError(f"buckets must be in 1 .. 2^31 - 1, not {buckets}")
    if creators is not None and len(creators) != len(texts):
        raise ValueError(f"creators and texts must have equal length, not {len(creators)} and {len(texts)}")
    parts: list[NDArray[np.int32]] = []
    sizes: list[NDArray[np.int64]] = []
    for start, end in _chunks(texts):
        owners, hashes = _features(texts[start:end], names=False)
        if creators is not None:
            more = _features(creators[start:end], names=True)
            owners, hashes = np.concatenate([owners, more[0]]), np.concatenate([hashes, more[1]])
        keys = owners * buckets + (hashes % np.uint64(buckets)).astype(np.int64)
        keys.sort()
        keys = keys[np.diff(keys, prepend=-1) != 0]
        parts.append((keys % buckets).astype(np.int32))
        sizes.append(np.bincount(keys // buckets, minlength=end - start))
    offsets = np.zeros(len(texts) + 1, dtype=np.int64)
    if not parts:
        return np.zeros(0, dtype=np.int32), offsets
    np.cumsum(np.concatenate(sizes), out=offsets[1:])
    return np.concatenate(parts), offsets


def bag_mean(table: NDArray[np.float32], ids: NDArray[np.int32], offsets: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the mean of each bag's rows of ``table`` (buckets, dim), (N, dim) float32. The mean is zero for an empty bag.

    A bag's rows are added in the order of its ids, so the result does not depend on the other bags.
    """
    sizes = np.diff(offsets)
    out = np.zeros((len(sizes), table.shape[1]), dtype=np.float32)
    filled = np.flatnonzero(sizes)
    starts = offsets[filled]
    # Bags are processed in blocks, which bounds the memory of the gathered rows.
    first = 0
    while first < len(filled):
        last = max(first + 1, int(np.searchsorted(starts, starts[first] + _BLOCK_IDS)))
        end = int(starts[last]) if last < len(filled) else int(offsets[-1])
        rows = table[ids[starts[first] : end]]
        out[filled[first:last]] = np.add.reduceat(rows, starts[first:last] - starts[first], axis=0)
        first = last
    out /= np.maximum(sizes, 1)[:, None].astype(np.float32)
    return out


def _chunks(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    start = characters = 0
    for index, text in enumerate(texts):
        characters += min(len(text), MAX_CHARACTERS)
        if characters >= _CHUNK_CHARACTERS:
            yield start, index + 1
            start, characters = index + 1, 0
    if start < len(texts):
        yield start, len(texts)


def _features(texts: Sequence[str], *, names: bool) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the (owner, hash) of every feature of the texts. Features may repeat.

    The owner is the index of the text. With ``names``, the texts are treated as creators' names.
    """
    codes, owners = _codes(texts)
    kinds = _kinds(codes)
    new = np.empty(len(codes), dtype=bool)
    new[:1] = True
    # A symbol is a run of its own.
    new[1:] = (kinds[1:] != kinds[:-1]) | (owners[1:] != owners[:-1]) | (kinds[1:] == _SYMBOL)
    starts = np.flatnonzero(new)
    ends = np.append(starts[1:], len(codes))
    kind = kinds[starts]
    hasher = _Substrings(codes)
    if names:
        return _name_features(hasher, owners, starts, ends, kind)
    words = (kind == _WORD) | (kind == _SYMBOL)
    found = [(owners[starts[words]], hasher.hash(starts[words], ends[words], _SEED_WORD))]
    # Each word gets a boundary mark before it and after it.
    marked, where = _with_boundaries(codes, starts[kind == _WORD], ends[kind == _WORD])
    runs = (
        (_Substrings(marked), where, _WORD_NGRAMS, _SEED_NGRAM, kind == _WORD, 2),
        (hasher, np.arange(len(codes)), _RUN_NGRAMS, _SEED_NGRAM + 8, kind == _UNSPACED, 0),
    )
    for substrings, positions, sizes, seed, chosen, extra in runs:
        first, length = starts[chosen], ends[chosen] - starts[chosen] + extra
        origin = positions[first] - (extra // 2)
        for n in sizes:
            at, run = _windows(origin, length - n + 1)
            found.append((owners[first][run], substrings.hash(at, at + n, seed + n)))
    return np.concatenate([f[0] for f in found]), np.concatenate([f[1] for f in found])


def _name_features(
    hasher: _Substrings,
    owners: NDArray[np.int64],
    starts: NDArray[np.int64],
    ends: NDArray[np.int64],
    kind: NDArray[np.uint8],
) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Return the features of names: the whole name, and each of its runs."""
    solid = kind != _SEPARATOR
    starts, ends = starts[solid], ends[solid]
    parts = hasher.hash(starts, ends, _SEED_CREATOR_WORD)
    owner = owners[starts]
    first = np.flatnonzero(np.diff(owner, prepend=-1))
    last = np.append(first[1:], len(owner)) - 1
    if not len(first):
        return owner, parts
    whole = hasher.hash(starts[first], ends[last], _SEED_CREATOR)
    return np.concatenate([owner[first], owner]), np.concatenate([whole, parts])


def _codes(texts: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the code points of the normalised texts, and the text index of each code point.

    The texts are joined, and each one ends with a line feed.
    """
    pieces = [_normal(text) for text in texts]
    raw = "\n".join(pieces) + "\n" if pieces else ""
    codes = np.frombuffer(raw.encode("utf-32-le"), dtype=np.uint32).astype(np.int64)
    owners = np.repeat(np.arange(len(pieces)), [len(piece) + 1 for piece in pieces])
    kept = _kinds(codes) != _IGNORED
    return codes[kept], owners[kept]


def _normal(text: str) -> str:
    text = text[:MAX_CHARACTERS]
    if text.isascii():
        return text.lower()
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", well_formed(text)).casefold())


def _kinds(codes: NDArray[np.int64]) -> NDArray[np.uint8]:
    return _kind_table()[np.minimum(codes, _TABLED)]


@cache
def _kind_table() -> NDArray[np.uint8]:
    """Return the kind of each code point below ``_TABLED``. The last entry is for all other code points."""
    by_category = {"L": _WORD, "M": _WORD, "N": _WORD, "S": _SYMBOL, "P": _SEPARATOR, "Z": _SEPARATOR}
    table = np.full(_TABLED + 1, _SEPARATOR, dtype=np.uint8)
    for code in range(_TABLED):
        category = unicodedata.category(chr(code))
        table[code] = _IGNORED if category == "Cf" else by_category.get(category[0], _SEPARATOR)
    for start, end in _UNSPACED_BLOCKS:
        block = table[start:end]
        block[block == _WORD] = _UNSPACED
    table[0xFE00:0xFE10] = _IGNORED  # variation selectors
    table[0x1F3FB:0x1F400] = _IGNORED  # skin tones
    ascii_symbols = table[:128]
    ascii_symbols[ascii_symbols == _SYMBOL] = _SEPARATOR
    table[_TABLED] = _IGNORED  # tags, selectors, private use
    return table


def _with_boundaries(
    codes: NDArray[np.int64], starts: NDArray[np.int64], ends: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Insert a mark before and after every word. Return the new codes and the new position of each old code."""
    added = np.zeros(len(codes) + 1, dtype=np.int64)
    added[starts] += 1
    added[ends] += 1
    positions = np.arange(len(codes)) + np.cumsum(added)[:-1]
    marked = np.full(len(codes) + 2 * len(starts), _BOUNDARY, dtype=np.int64)
    marked[positions] = codes
    return marked, positions


def _windows(origin: NDArray[np.int64], count: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the starts of ``count[r]`` consecutive windows from ``origin[r]`` on, and the run r of each window."""
    count = np.maximum(count, 0)
    run = np.repeat(np.arange(len(origin)), count)
    before = np.cumsum(count) - count
    return origin[run] + np.arange(len(run)) - before[run], run


class _Substrings:
    """Hashes the substrings of an array of codes. A hash does not depend on the position, so equal substrings have equal hashes."""

    def __init__(self, codes: NDArray[np.int64]) -> None:
        self._inverse = _powers(_P_INVERSE, len(codes) + 1)
        self._sums = np.zeros(len(codes) + 1, dtype=np.uint64)
        terms = _mix(codes.astype(np.uint64) + np.uint64(1)) * _powers(_P, len(codes))
        np.cumsum(terms, out=self._sums[1:])

    def hash(self, starts: NDArray[np.int64], ends: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
        """Return the uint64 hash of each of n substrings [start, end). Each kind of feature has its own seed."""
        value = (self._sums[ends] - self._sums[starts]) * self._inverse[starts]
        return _mix(value + np.uint64(seed * _P % 2**64))


def _powers(base: int, length: int) -> NDArray[np.uint64]:
    """Return base^i modulo 2^64 for i < ``length``, (length,) uint64."""
    return _power_table(base, max(12, length.bit_length()))[:length]


@cache
def _power_table(base: int, bits: int) -> NDArray[np.uint64]:
    table = np.full(2**bits, base, dtype=np.uint64)
    table[0] = 1
    return np.cumprod(table, dtype=np.uint64)


def _mix(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Apply a bijection on 64-bit numbers in which each input bit affects all output bits (splitmix64's finaliser)."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
