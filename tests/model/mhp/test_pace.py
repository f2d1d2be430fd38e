"""The pace of a video so far, and the intensity that starts from it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.features.tokens import LOG_AGE_OFFSET_S, Tokens
from model.mhp.likelihood import IntensityHead, mean_after_gap
from model.mhp.pace import MEMORIES, pace_after, pace_rows

LENGTHS = (7, 0, 1, 12)


def tokens_of(rng: np.random.Generator, lengths: tuple[int, ...] = LENGTHS, n_types: int = 2) -> Tokens:
    intervals = []
    for n in lengths:
        edges = np.cumsum(rng.gamma(1.0, 300.0, (n, 2)).ravel())
        ends = np.concatenate([[0.0], edges[1::2]])
        intervals += [(ends[i], edges[2 * i], ends[i + 1]) for i in range(n)]
    total, s = sum(lengths), len(lengths)
    none = np.zeros((total, 1), np.float32)
    observed = np.ones((total, n_types), np.bool_)
    observed[::3, 1:] = False
    return Tokens(
        np.concatenate([[0], np.cumsum(lengths)]),
        none,
        np.zeros((total, 2), np.float32),
        np.array(intervals).reshape(total, 3),
        rng.poisson(5.0, (total, n_types)).astype(np.float64),
        observed,
        np.zeros(s, np.bool_),
        np.zeros((s, 1), np.float32),
        np.zeros((s, 2), np.float32),
        np.zeros((s, n_types)),
        np.zeros(s),
        np.zeros(total, np.uint64),
        np.zeros(s),
    )


def summed(tokens: Tokens, video: int, stop: int, kind: int, memory: float) -> NDArray[np.float64]:
    """Decayed sums of counts and of observed log-age up to token ``stop``, by numerical integration."""
    at = np.log(tokens.interval_s[stop, 2] + LOG_AGE_OFFSET_S)
    n = m = 0.0
    for i in range(tokens.offsets[video], stop + 1):
        if not tokens.observed[i, kind]:
            continue
        start, end = np.log(tokens.interval_s[i, ::2] + LOG_AGE_OFFSET_S).tolist()
        x = np.linspace(start, end, 20_001)
        left = np.exp(-(at - x) / memory)
        seen = float(np.trapezoid(left, x))
        n += tokens.counts[i, kind] * seen / (x[-1] - x[0])
        m += seen
    return np.array([n, m])


def test_sums_decay_with_the_memory() -> None:
    tokens = tokens_of(np.random.default_rng(0))
    after = pace_after(tokens)
    for video, n in enumerate(LENGTHS):
        for stop in range(tokens.offsets[video], tokens.offsets[video] + n):
            for kind in range(2):
                for m, memory in enumerate(MEMORIES):
                    np.testing.assert_allclose(
                        after[stop, kind, m], summed(tokens, video, stop, kind, memory), rtol=1e-4
                    )


def test_the_last_row_is_the_pace_without_tokens() -> None:
    tokens = tokens_of(np.random.default_rng(1))
    rows = pace_rows(tokens)
    np.testing.assert_array_equal(rows[:-1], pace_after(tokens))
    assert not rows[-1].any()


def rows_before(tokens: Tokens) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The age and the pace before each token, and the bounds of its counts."""
    before = np.arange(len(tokens.counts)) - 1
    before[np.isin(before + 1, tokens.offsets)] = -1
    bounds = np.where(tokens.observed[..., None], tokens.interval_s[:, None], np.nan)
    return (
        torch.from_numpy(tokens.interval_s[:, 0].copy()),
        torch.from_numpy(pace_rows(tokens)[before]),
        torch.from_numpy(bounds),
    )


def head_for(tokens: Tokens) -> IntensityHead:
    torch.manual_seed(3)
    head = IntensityHead(8, tokens.counts.shape[1])
    previous, pace, bounds = rows_before(tokens)
    head.fit(torch.from_numpy(tokens.counts), bounds, previous, pace)
    return head


def test_before_training_a_video_keeps_its_pace() -> None:
    """Videos have very different paces. Without a state, the expected counts follow each video's own pace."""
    rng = np.random.default_rng(4)
    lengths = (40,) * 30
    tokens = tokens_of(rng, lengths, n_types=1)
    tokens.interval_s[:, 1] = tokens.interval_s[:, 0]
    paces = np.repeat(np.geomspace(1.0, 1e5, 30), 40)
    x = np.log(tokens.interval_s + LOG_AGE_OFFSET_S)
    tokens.counts[:, 0] = rng.poisson(paces * (x[:, 2] - x[:, 1]))
    head = head_for(tokens)
    previous, pace, bounds = rows_before(tokens)
    with torch.no_grad():
        gap, active, dispersion = head.integrals(torch.zeros(len(x), 8), pace, previous, bounds)
        mean = mean_after_gap(gap, active, dispersion)
    late = np.arange(len(x)) % 40 >= 20
    ratio = np.log2((mean.numpy()[late, 0] + 1) / (tokens.counts[late, 0] + 1))
    assert abs(np.median(ratio)) < 0.5
    assert np.quantile(np.abs(ratio), 0.9) < 1.5


@pytest.mark.parametrize("rows", [0, 1])
def test_types_that_were_never_seen_keep_their_initial_values(rows: int) -> None:
    tokens = tokens_of(np.random.default_rng(5), (rows,))
    tokens.observed[:] = False
    head = head_for(tokens)
    assert torch.equal(head.usual, torch.ones(2))
    assert all(torch.isfinite(p).all() for p in head.parameters())
