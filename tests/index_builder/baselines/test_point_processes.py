"""Log-likelihood baselines are right on processes whose truth is known, and are scored on the same tokens as the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from index_builder.baselines.point_processes import ExponentialHawkes, Means, Pace, log_likelihood
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.likelihood import (
    BASELINES,
    baseline_log_likelihood,
    likelihoods,
    mhp_log_likelihood,
)
from index_builder.evaluation.process_states import scored_rows
from index_builder.samples.exposure import BY_EVENTS, Exposure
from model.ablation import Ablation
from model.bundle import load_bundle
from model.engagement.bins import HOUR_US
from model.engagement.cells import Cells
from model.errors import DataError
from model.features.tokens import Tokens
from model.mhp.backends.cpu import CPUBackend
from model.mhp.likelihood import IntensityHead
from model.mhp.pace import MEMORIES, pace_after
from tests.conftest import Mini

MONTH_US = 720 * HOUR_US


@pytest.fixture(scope="module")
def observed(mini: Mini) -> Observed:
    """The miniature data set."""
    return Observed.of(load_dataset(mini.data), "view")


Rows = tuple[Tokens, Exposure]


def counted(videos: int, width_s: float, steps: int, mean: np.ndarray, seed: int) -> Rows:
    """Tokens of one type in back-to-back intervals with Poisson counts of ``mean`` (videos, steps), and no silence."""
    rng = np.random.default_rng(seed)
    n = videos * steps
    edges = np.tile(np.arange(steps) * width_s, videos)
    interval = np.stack([edges, edges, edges + width_s], axis=1)
    counts = rng.poisson(mean).reshape(n, 1).astype(np.float64)
    none = np.zeros((n, 1), np.float32)
    tokens = Tokens(
        np.arange(videos + 1) * steps,
        none,
        none,
        interval,
        counts,
        np.ones((n, 1), np.bool_),
        np.zeros(videos, np.bool_),
        none[:videos],
        none[:videos],
        np.zeros((videos, 1)),
        np.zeros(videos),
        np.zeros(n, np.uint64),
        np.zeros(videos),
    )
    return tokens, rows_of(tokens)


def rows_of(tokens: Tokens) -> Exposure:
    """Every token, scored for its type."""
    at = np.arange(len(tokens.counts))
    first = np.isin(at, tokens.offsets[:-1])
    none = np.zeros(0, np.int64)
    return Exposure(
        tokens.offsets,
        at,
        np.where(first, -1, at - 1),
        tokens.interval_s[:, 0],
        tokens.interval_s[:, None],
        tokens.counts,
        np.full(1, BY_EVENTS),
        Cells(np.zeros(len(tokens.offsets), np.int64), none, none, none, none, none),
    )


def score(rows: Rows, mean: np.ndarray) -> float:
    """The log-likelihood per token with the given means of intervals without gaps."""
    return float(log_likelihood(rows[1], 0, Means(np.zeros(mean.size), mean.ravel())).mean())


def fitted(process: Pace | ExponentialHawkes, learned: Rows, asked: Rows) -> float:
    return float(log_likelihood(asked[1], 0, process.fit(*learned).means(*asked)).mean())


def test_the_likelihood_counts_the_gap_and_the_interval() -> None:
    tokens, _ = counted(1, 10.0, 3, np.ones((1, 3)), 0)
    tokens.interval_s[1:, 1] += 4.0
    rows = rows_of(tokens)
    means = Means(np.array([0.0, 0.5, 0.5]), np.full(3, 2.0))
    n = tokens.counts[:, 0]
    poisson = n * np.log(2) - 2 - torch.lgamma(torch.from_numpy(n) + 1).numpy()
    np.testing.assert_allclose(log_likelihood(rows, 0, means), poisson - [0, 0.5, 0.5])
    near = log_likelihood(rows, 0, means.scaled(1.0, 1e7))
    np.testing.assert_allclose(near, poisson - [0, 0.5, 0.5], atol=1e-4)
    # With dispersion r, the same factor multiplies the means of the gap and the interval. It is gamma distributed.
    factor = (np.arange(200_000) + 0.5) / 5000
    for r in (1.5, 4.0):
        density = factor ** (r - 1) * np.exp(-r * factor)
        both = np.exp(-0.5 * factor) * (2 * factor) ** n[1:, None] * np.exp(-2 * factor)
        mixed = np.log((both * density).sum(1) / density.sum()) - torch.lgamma(torch.from_numpy(n[1:]) + 1).numpy()
        np.testing.assert_allclose(log_likelihood(rows, 0, means.scaled(1.0, r))[1:], mixed, rtol=1e-4)
    rows.bounds_s[0] = np.nan
    assert log_likelihood(rows, 0, means)[0] == 0


def test_the_pace_process_finds_each_videos_rate() -> None:
    own = np.random.default_rng(3).gamma(3.0, 3.0, (150, 1))
    mean = own / (1 + np.arange(30))
    learned, held = counted(150, 600.0, 30, mean, 1), counted(150, 600.0, 30, mean, 2)
    truth = score(held, mean)
    found = fitted(Pace(0, overdispersed=False), learned, held)
    assert score(held, np.full(mean.size, mean.mean())) < found <= truth + 0.01
    # A video's pace is learned from its own counts: half the log of their number, over its tokens, is lost at best.
    assert truth - found < 0.1


def test_the_hawkes_process_is_recovered_from_its_own_events() -> None:
    rng = np.random.default_rng(5)
    width, decay, base, branching = 60.0, 1 / 900, 0.02, 0.6
    steps, videos = 120, 60
    mean = np.zeros((videos, steps))
    counts = np.zeros((videos, steps))
    kept, share = np.exp(-decay * width), -np.expm1(-decay * width) / (decay * width)
    state = np.zeros(videos)
    for i in range(steps):
        mean[:, i] = base * width + branching * state * (1 - kept)
        counts[:, i] = rng.poisson(mean[:, i])
        state = state * kept + counts[:, i] * share
    rows = counted(videos, width, steps, mean, 6)
    rows[0].counts[:] = counts.reshape(-1, 1)
    found = fitted(ExponentialHawkes(0, overdispersed=False), rows, rows)
    assert found == pytest.approx(score(rows, mean), abs=0.005)
    assert found > fitted(Pace(0, overdispersed=False), rows, rows)


def test_overdispersion_is_found() -> None:
    rng = np.random.default_rng(7)
    mean = rng.gamma(0.5, 10.0, (80, 25))
    rows = counted(80, 60.0, 25, mean, 8)
    for plain, over in (("Poisson", "negative binomial"), ("exponential Hawkes", "exponential Hawkes, over-dispersed")):
        a, b = (baseline_log_likelihood(name, rows, rows).mean() for name in (plain, over))
        assert b > a + 0.5


@pytest.mark.parametrize("name", BASELINES)
def test_a_token_is_scored_from_earlier_tokens_only(name: str, mini: Mini, observed: Observed) -> None:
    rows = scored_rows(observed, np.arange(20), mini.as_of_us, MONTH_US)
    process = BASELINES[name](0).fit(*rows)
    before = log_likelihood(rows[1], 0, process.means(*rows))
    newest = rows[1].offsets[1:] - 2
    last = newest[(newest >= rows[1].offsets[:-1]) & rows[1].scored[newest, 0]]
    changed = replace(rows[1], counts=rows[1].counts.copy())
    changed.counts[last] += 100
    after = log_likelihood(changed, 0, process.means(rows[0], changed))
    others = np.setdiff1d(np.arange(len(before)), np.concatenate([last, last + 1]))
    np.testing.assert_array_equal(after[others], before[others])
    assert (after[last] != before[last]).any()


def tokens_until(tokens: Tokens, video: int, stop: int) -> Tokens:
    rows = slice(tokens.offsets[video], stop)
    return replace(
        tokens,
        offsets=np.array([0, stop - tokens.offsets[video]]),
        interval_s=tokens.interval_s[rows],
        counts=tokens.counts[rows],
        observed=tokens.observed[rows],
    )


def test_the_batched_likelihood_equals_the_serving_steps(mini: Mini, observed: Observed) -> None:
    """The batched scan and the serving kernel, one token at a time, agree."""
    bundle = load_bundle(mini.bundle)
    tokens, exposure = scored_rows(observed, np.arange(12), mini.as_of_us, MONTH_US)
    found = mhp_log_likelihood(bundle, tokens, exposure)
    backend, shape = CPUBackend(bundle.manifest.shape, bundle.weights), bundle.manifest.shape
    head = IntensityHead(shape.d_model, shape.n_types)
    head.load_state_dict(
        {
            n.removeprefix("intensity."): torch.from_numpy(w)
            for n, w in bundle.weights.items()
            if n.startswith("intensity.")
        }
    )
    no_pace = torch.zeros(1, shape.n_types, len(MEMORIES), 2)
    for v in range(12):
        states, hidden = backend.new_states(1), bundle.weights["intensity.start"][None]
        for row in range(exposure.offsets[v], min(exposure.offsets[v + 1], exposure.offsets[v] + 40)):
            first, i = tokens.offsets[v], exposure.token[row]
            before = exposure.before[row]
            pace = (
                torch.from_numpy(pace_after(tokens_until(tokens, v, before + 1))[-1:]) if before >= first else no_pace
            )
            arrays = exposure.previous_s, exposure.bounds_s, exposure.counts
            with torch.no_grad():
                want = head.log_likelihood(
                    torch.from_numpy(hidden), pace, *(torch.from_numpy(a[row : row + 1]) for a in arrays)
                )
            np.testing.assert_allclose(found[row], want[0].numpy(), rtol=1e-3, atol=1e-3)
            one = np.array([0, 1])
            if i >= 0:
                hidden = backend.advance(
                    states, np.zeros(1, np.int64), one, tokens.features[i : i + 1], tokens.clock[i : i + 1]
                )


def test_likelihoods_scores_the_model_and_every_baseline(mini: Mini, observed: Observed) -> None:
    bundle = load_bundle(mini.bundle)
    done: list[int] = []
    table, ratios = likelihoods(bundle, observed, published_from_us=mini.as_of_us, advance=done.append)
    assert list(table) == ["M3TR", *BASELINES] and len(done) == len(table)
    assert len({row.tokens for row in table.values()}) == 1
    assert all(row.low <= row.mean <= row.high for row in table.values())
    assert {row.type for row in ratios} == set(bundle.manifest.types)
    assert all(row.low <= row.ratio <= row.high and row.expected > 0 for row in ratios)
    for published_from_us, side in ((0, "before"), (2**61, "from")):
        with pytest.raises(DataError, match=f"no video published {side} this time"):
            likelihoods(bundle, observed, published_from_us=published_from_us)
    without = replace(bundle, manifest=replace(bundle.manifest, parts=Ablation(mhp=False)))
    with pytest.raises(DataError, match="use_mhp"):
        likelihoods(without, observed, published_from_us=mini.as_of_us)
