"""Evaluates a newly trained model on holdout videos, as part of training."""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.baselines.simple import GrowthFactor, LogLinear, MeanGrowth, Persistence
from index_builder.datasets.dataset import DataSet
from index_builder.report.evaluation import Evaluation
from index_builder.report.forecast_groups import MIN_FORECASTS
from index_builder.report.summary import utc_minutes
from index_builder.samples.queries import Pairs, Queries
from index_builder.samples.samples import Samples
from index_builder.scoring.calibrate import calibrate
from index_builder.scoring.cell_scores import scores_by_cell
from index_builder.scoring.holdout import calibrated
from model.bundle import Manifest
from model.engagement.bins import SECOND_US

_MAX_ROWS: Final = 20_000
"""Maximum number of forecasts in a report. With this number, the report's bootstrap takes seconds."""
_AGES_H: Final = (6, 24, 72)
_HORIZONS_H: Final = (24, 72)


def holdout_evaluation(
    manifest: Manifest,
    data: DataSet,
    fit: Samples,
    holdout: Samples,
    stopping: NDArray[np.bool_],
    parts: dict[str, NDArray[np.float32]],
) -> Evaluation:
    """Score each method's ``parts`` of growth (N, J, N_PARTS) on the ``holdout`` samples, and return the evaluation.

    N is the number of samples and J is the number of horizons. Simple baselines are fitted on ``fit`` and scored too.
    The samples that ``stopping`` (N,) flags calibrate each method. The other samples are scored. Cold samples are
    left out, because a baseline has nothing to forecast from.
    """
    scored = holdout.take(~stopping)
    rows = _labelled(scored)
    rows[rows] = _some_videos(np.broadcast_to(scored.video[:, None], rows.shape)[rows])
    pairs, sample = _pairs(scored, rows), np.nonzero(rows)[0]
    code, names = _cells(pairs)
    horizon_us = np.rint(pairs.horizon_s * SECOND_US).astype(np.int64)
    queries = Queries(scored.video[sample], scored.now_us[sample], horizon_us, names[code], pairs)
    past, growths = _pairs(fit, _labelled(fit)), {}
    if len(past) and len(pairs):
        for baseline in (MeanGrowth(), Persistence(), GrowthFactor(), LogLinear()):
            growths[baseline.name] = baseline.fit(past).predict(pairs)[:, None]
    for name, raw in parts.items():
        calibration = calibrate(holdout.take(stopping), raw[stopping])
        growths[name] = calibrated(scored, raw[~stopping], calibration)[rows]
    order = np.argsort(code, kind="stable")
    queries, growths = queries.take(order), {name: growth[order] for name, growth in growths.items()}
    about = "nothing: too few videos were held out"
    if len(pairs):
        published = data.published_us[queries.video]
        first, last = utc_minutes(int(published.min())), utc_minutes(int(published.max()))
        about = (
            f"{len(np.unique(queries.video)):,} videos published from {first} to {last}. They are the newest videos, and training held "
            "them out. Other videos of this period decided when training stopped, and calibrated the intervals."
        )
    table = scores_by_cell(queries, growths) if len(pairs) else {}
    return Evaluation(manifest, data.videos, queries, growths, table, about, sampled_from=len(data.videos))


def _labelled(samples: Samples) -> NDArray[np.bool_]:
    return np.isfinite(samples.growth) & ~samples.cold[:, None]


def _some_videos(video: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Choose whole videos at random until there are _MAX_ROWS rows. Return flags of their rows."""
    which, owner = np.unique(video, return_inverse=True)
    order = np.random.default_rng(0).permutation(len(which))
    before = np.cumsum(np.bincount(owner, minlength=len(which))[order])
    taken = np.zeros(len(which), dtype=bool)
    taken[order[: 1 + int(np.searchsorted(before, _MAX_ROWS))]] = True
    return taken[owner]


def _pairs(samples: Samples, rows: NDArray[np.bool_]) -> Pairs:
    sample = np.nonzero(rows)[0]
    return Pairs(samples.age_s[sample], samples.horizon_s[rows], samples.value_now[sample], samples.growth[rows])


def _cells(pairs: Pairs) -> tuple[NDArray[np.int64], NDArray[np.str_]]:
    """Return the index of each pair's cell of age and horizon (n,), and the names of the cells. Cells with few pairs are merged."""
    age, horizon = (
        np.searchsorted(np.array(limits) * 3600.0, seconds)
        for limits, seconds in ((_AGES_H, pairs.age_s), (_HORIZONS_H, pairs.horizon_s))
    )
    ages, horizons = _classes(_AGES_H), _classes(_HORIZONS_H)
    names = [*(f"{a} old, +{h}" for a in ages for h in horizons), "others"]
    code = age * len(horizons) + horizon
    few = np.bincount(code, minlength=len(names)) < MIN_FORECASTS
    return np.where(few[code], len(names) - 1, code), np.array(names)


def _classes(limits_h: tuple[int, ...]) -> list[str]:
    edges = (0, *limits_h)
    return [f"{low}-{high} h" for low, high in zip(edges, limits_h, strict=False)] + [f"over {edges[-1]} h"]
