"""The verdict compares with the best other method, on videos that still grow, and says how many videos certainty needs."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from index_builder.report import MODEL, Evaluation, Verdict, VideoBootstrap, verdict
from index_builder.report.verdict import _POWER, growing_rows
from index_builder.samples.queries import Pairs, Queries


def evaluation(y: np.ndarray, cell: np.ndarray, **growths: Any) -> Evaluation:
    n, sampled_from = len(y), growths.pop("sampled_from", None)
    pairs = Pairs(np.ones(n), np.ones(n), np.ones(n), y)
    queries = Queries(np.arange(n), np.zeros(n, np.int64), np.ones(n, np.int64), cell, pairs)
    named: dict[str, Any] = {name.replace("_", " "): g[:, None] for name, g in growths.items()}
    return Evaluation(None, [], queries, named, {}, "", sampled_from=sampled_from)  # type: ignore[arg-type]


def noisy(n: int, seed: int, better: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Outcomes, the model's forecasts, and a baseline's forecasts whose errors are larger by ``better``."""
    rng = np.random.default_rng(seed)
    y = 1 + rng.normal(size=n)
    return y, y + rng.normal(size=n), y + (1 + better) * rng.normal(size=n)


def judged(of: Evaluation) -> Verdict:
    found = verdict(of, VideoBootstrap(of.queries.video))
    assert found is not None
    return found


def test_a_clear_gain_is_certain_and_against_the_best_other_method() -> None:
    y, ours, theirs = noisy(4000, 1, 0.2)
    of = evaluation(y, np.full(4000, "young"), **{MODEL: ours, "growth_factor": theirs, "mean": np.zeros(4000)})
    found = judged(of)
    assert found.rival == "growth factor"
    assert found.certain
    assert found.low < found.gain < found.high
    assert found.gain == pytest.approx(1 - 1 / 1.2**2, abs=0.05)
    assert found.more() is None
    sentence = found.sentence(of)
    assert sentence.startswith("better than growth factor by 3")
    assert "% (95 % interval 2" in sentence
    turned = evaluation(y, np.full(4000, "young"), **{MODEL: theirs, "growth_factor": ours})
    assert judged(turned).sentence(turned).startswith("worse than growth factor by 4")


def test_videos_that_do_not_grow_do_not_change_the_verdict() -> None:
    """Where nothing grows, every method that forecasts no growth is right: more such forecasts must change nothing."""
    y, ours, theirs = noisy(400, 2, 0.5)
    young = evaluation(y, np.full(400, "young"), **{MODEL: ours, "growth_factor": theirs})
    old = np.zeros(5000)
    both = evaluation(
        np.concatenate([y, old]),
        np.array(["young"] * 400 + ["old"] * 5000),
        **{MODEL: np.concatenate([ours, old + 1]), "growth_factor": np.concatenate([theirs, old])},
    )
    assert judged(both).gain == pytest.approx(judged(young).gain)
    assert (judged(both).growing, judged(young).growing) == (True, False)
    assert judged(both).videos == 400
    still = evaluation(old, np.full(5000, "old"), **{MODEL: old + 1, "growth_factor": old + 2})
    assert growing_rows(still)[0].all(), "where nothing grows all are scored"


def test_the_reported_number_of_further_videos_makes_the_gain_certain() -> None:
    """The reported number suffices in about four of five trials, and the present number does not."""
    y, ours, theirs = noisy(60, 3, 0.15)
    of = evaluation(y, np.full(60, "young"), sampled_from=600, **{MODEL: ours, "growth_factor": theirs})
    true = 1 - 1 / 1.15**2
    wide = Verdict("growth factor", true, true - 0.5, true + 0.5, 60, False)
    times = wide.more()
    assert times is not None
    assert times == pytest.approx(2.04 * (0.5 / true) ** 2, rel=0.01)
    assert wide.sentence(of).startswith(
        "not certainly better than growth factor (24% better, 95 % interval -26 to 74): collect about "
    )
    assert int(wide.sentence(of).split("about ")[1].split(" ")[0].replace(",", "")) == pytest.approx(
        (times - 1) * 600, rel=0.05
    )
    certain = 0
    for seed in range(40):
        small = judged(_of(noisy(200, 100 + seed, 0.15)))
        half = (small.high - small.low) / 2
        needed = _POWER * (half / true) ** 2
        certain += judged(_of(noisy(int(200 * needed), 500 + seed, 0.15))).certain
    assert 26 <= certain <= 38


def _of(found: tuple[np.ndarray, np.ndarray, np.ndarray]) -> Evaluation:
    y, ours, theirs = found
    return evaluation(y, np.full(len(y), "young"), **{MODEL: ours, "growth_factor": theirs})


def test_no_gain_or_a_tiny_one_reports_no_number_of_videos() -> None:
    of = evaluation(np.ones(3), np.full(3, "a"), **{MODEL: np.ones(3), "b": np.zeros(3)})
    none = Verdict("b", -0.02, -0.2, 0.1, 3, False)
    assert (
        none.sentence(of)
        == "not certainly better than b (2% worse, 95 % interval -20 to 10): b is as good on this data"
    )
    tiny = Verdict("b", 0.001, -0.2, 0.2, 3, False)
    assert tiny.sentence(of).endswith("the difference is too small to tell")
