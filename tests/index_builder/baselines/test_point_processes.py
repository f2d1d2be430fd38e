"""Log-likelihood baselines are right on processes whose truth is known, and are scored on the same tokens as the model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from index_builder.baselines.point_processes import POISSON, ExponentialHawkes, Means, Pace, log_likelihood
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.evaluation.likelihood import (
    BASELINES,
    baseline_log_likelihood,
    likelihoods,
    mhp_log_likelihood,
    tokens_of,
)
from model.ablation import Ablation
from model.bundle import load_bundle
from model.errors import DataError
from model.features.tokens import Tokens
from model.mhp.backends.cpu import CPUBackend
from model.mhp.likelihood import IntensityHead
from model.mhp.pace import MEMORIES, pace_after
from tests.conftest import Mini


@pytest.fixture(scope="module")
def observed(mini: Mini) -> Observed:
    """The miniature data set."""
    return Observed.of(load_dataset(mini.data), "view")


def counted(videos: int, width_s: float, steps: int, mean: np.ndarray, seed: int) -> Tokens:
    """Tokens of one type in back-to-back intervals with Poisson counts of ``mean`` (videos, steps)."""
    rng = np.random.default_rng(seed)
    n = videos * steps
    edges = np.tile(np.arange(steps) * width_s, videos)
    interval = np.stack([edges, edges, edges + width_s], axis=1)
    counts = rng.poisson(mean).reshape(n, 1).astype(np.float64)
    none = np.zeros((n, 1), np.float32)
    return Tokens(
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


def test_the_likelihood_counts_the_gap_and_the_interval() -> None:
    tokens = counted(1, 10.0, 3, np.ones((1, 3)), 0)
    tokens.interval_s[1:, 1] += 4.0
    means = Means(np.full(3, 0.5), np.full(3, 2.0))
    n = tokens.counts[:, 0]
    poisson = n * np.log(2) - 2 - torch.lgamma(torch.from_numpy(n) + 1).numpy()
    np.testing.assert_allclose(log_likelihood(tokens, 0, means, POISSON), poisson - [0, 0.5, 0.5])
    near = log_likelihood(tokens, 0, means, 1e7)
    np.testing.assert_allclose(near, poisson - [0, 0.5, 0.5], atol=1e-4)
    tokens.observed[0] = False
    assert np.isnan(log_likelihood(tokens, 0, means, POISSON)[0])


def test_the_pace_process_finds_each_videos_rate() -> None:
    own = np.random.default_rng(3).gamma(3.0, 3.0, (150, 1))
    mean = own / (1 + np.arange(30))
    learned, held = counted(150, 600.0, 30, mean, 1), counted(150, 600.0, 30, mean, 2)
    truth = log_likelihood(held, 0, Means(np.zeros(held.counts.size), mean.ravel()), POISSON).mean()
    found = Pace(0, overdispersed=False).fit(learned).log_likelihood(held).mean()
    flat = log_likelihood(held, 0, Means(np.zeros(held.counts.size), np.full(held.counts.size, mean.mean())), POISSON)
    assert flat.mean() < found <= truth + 0.01
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
    tokens = counted(videos, width, steps, mean, 6)
    tokens.counts[:] = counts.reshape(-1, 1)
    truth = log_likelihood(tokens, 0, Means(np.zeros(tokens.counts.size), mean.ravel()), POISSON).mean()
    fitted = ExponentialHawkes(0, overdispersed=False).fit(tokens)
    assert fitted.log_likelihood(tokens).mean() == pytest.approx(truth, abs=0.005)
    assert fitted.log_likelihood(tokens).mean() > Pace(0, overdispersed=False).fit(tokens).log_likelihood(tokens).mean()


def test_overdispersion_is_found() -> None:
    rng = np.random.default_rng(7)
    mean = rng.gamma(0.5, 10.0, (80, 25))
    tokens = counted(80, 60.0, 25, mean, 8)
    for plain, over in (("Poisson", "negative binomial"), ("exponential Hawkes", "exponential Hawkes, over-dispersed")):
        a, b = (baseline_log_likelihood(name, tokens, tokens).mean() for name in (plain, over))
        assert b > a + 0.5


@pytest.mark.parametrize("name", BASELINES)
def test_a_token_is_scored_from_earlier_tokens_only(name: str, mini: Mini, observed: Observed) -> None:
    tokens = tokens_of(observed, np.arange(20), mini.as_of_us)
    process = BASELINES[name](0).fit(tokens)
    before = process.log_likelihood(tokens)
    changed = replace(tokens, counts=tokens.counts.copy())
    last = tokens.offsets[1:][np.diff(tokens.offsets) > 0] - 1
    changed.counts[last] += 100
    after = process.log_likelihood(changed)
    others = np.setdiff1d(np.arange(len(before)), last)
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
    tokens = tokens_of(observed, np.arange(12), mini.as_of_us)
    found = mhp_log_likelihood(bundle, tokens)
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
        for i in range(tokens.offsets[v], min(tokens.offsets[v + 1], tokens.offsets[v] + 40)):
            previous, start, end = torch.from_numpy(tokens.interval_s[i : i + 1].T.copy())
            pace = torch.from_numpy(pace_after(tokens_until(tokens, v, i))[-1:]) if i > tokens.offsets[v] else no_pace
            with torch.no_grad():
                want = head.log_likelihood(
                    torch.from_numpy(hidden), pace, previous, start, end, torch.from_numpy(tokens.counts[i : i + 1])
                )[0].numpy()
            np.testing.assert_allclose(found[i], np.where(tokens.observed[i], want, np.nan), rtol=1e-3, atol=1e-3)
            one = np.array([0, 1])
            hidden = backend.advance(
                states, np.zeros(1, np.int64), one, tokens.features[i : i + 1], tokens.clock[i : i + 1]
            )


def test_likelihoods_scores_the_model_and_every_baseline(mini: Mini, observed: Observed) -> None:
    bundle = load_bundle(mini.bundle)
    done: list[int] = []
    table = likelihoods(bundle, observed, published_from_us=mini.as_of_us, advance=done.append)
    assert list(table) == ["M3TR", *BASELINES] and len(done) == len(table)
    assert len({row.tokens for row in table.values()}) == 1
    assert all(row.low <= row.mean <= row.high for row in table.values())
    for published_from_us, side in ((0, "before"), (2**61, "from")):
        with pytest.raises(DataError, match=f"no video published {side} this time"):
            likelihoods(bundle, observed, published_from_us=published_from_us)
    without = replace(bundle, manifest=replace(bundle.manifest, parts=Ablation(mhp=False)))
    with pytest.raises(DataError, match="use_mhp"):
        likelihoods(without, observed, published_from_us=mini.as_of_us)
