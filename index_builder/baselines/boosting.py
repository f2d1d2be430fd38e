"""Gradient boosting with the model's own inputs: the usual alternative to the model.

LightGBM reads the rows that the model's boosted trees read (``model.trees``): counts, rates and gaps, signals,
attributes, creator, category, language, text, the cascade's expectation, and the horizon. Only the neighbours are left
out, because retrieval is a part of the model.

One ensemble forecasts the mean by squared error. The others forecast the quantiles 0.1, 0.5 and 0.9, each by its own loss.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.cascade.fit import fit_cascade
from index_builder.datasets.observed import Observed
from index_builder.neighbours.base_fit import fit_base
from index_builder.neighbours.neighbour_inputs import NeighbourInputs
from index_builder.samples.network_inputs import ContentInputs, SampleSet, content_inputs
from index_builder.samples.queries import Queries
from index_builder.samples.samples import Samples, draw_samples, read_samples
from index_builder.trees.fit import ROWS_OF_A_THREAD, label_rows, load_lightgbm, read_inputs, tree_reader
from model.features.schema import Schema
from model.growth.curve_kernels import growth_horizons_us
from model.growth.curves import curves, usual_pace
from model.trees import TreeInputs, TreeReader

ENSEMBLES: Final = 4
"""Number of ensembles, which are trained one after the other."""
ROUNDS: Final = 400
ROWS: Final = 500_000
"""Maximum number of training rows."""
_CUTS: Final = 16
_LABELS: Final = 6
_PARAMETERS: Final[dict[str, Any]] = {
    "learning_rate": 0.05,
    "num_leaves": 63,
    "min_data_in_leaf": 100,
    "feature_fraction": 0.7,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "verbose": -1,
    "deterministic": True,
}
_OBJECTIVES: Final[tuple[dict[str, Any], ...]] = (
    {"objective": "regression"},
    *({"objective": "quantile", "alpha": level} for level in (0.1, 0.5, 0.9)),
)


def boosted(
    past: Observed,
    observed: Observed,
    queries: Queries,
    schema: Schema,
    until_us: int,
    seed: int = 0,
    advance: Callable[[int], None] | None = None,
) -> NDArray[np.float64]:
    """Forecast the growth of queries on ``observed``, with trees trained on ``past``.

    Return a float64 array of shape (Q, 4) with the mean and the quantiles 0.1, 0.5 and 0.9 for each of Q queries, in
    log2 units >= 0. ``past`` ends at ``until_us``. The quantiles are in order. ``advance`` is called with 1 after each
    of the ENSEMBLES ensembles is trained.

    Raises:
        DataError: LightGBM is not installed.
    """
    lightgbm = load_lightgbm()
    cascade = None
    if past.continuous:
        cascade = fit_cascade(past, until_us, schema.max_age_us, schema.max_horizon_us, seed=seed)
    samples = draw_samples(
        past,
        until_us=until_us,
        max_age_us=schema.max_age_us,
        max_horizon_us=schema.max_horizon_us,
        n_labels=_LABELS,
        cuts_per_video=_CUTS,
        seed=seed,
        cascade=cascade,
        signals=schema.signals,
    )
    known_growth = curves(past.metric, past.totals, past.data.published_us, until_us, continuous=past.continuous)
    usual = usual_pace(known_growth), fit_base(known_growth, growth_horizons_us(schema.max_horizon_us))
    learned = _sample_set(past, samples.take(~samples.cold), schema, until_us, usual)
    content = content_inputs(past.data.videos, schema)
    reader = tree_reader(learned, content, schema, usual[1])
    known = np.isfinite(learned.samples.growth)
    if known.sum() > ROWS:
        known &= np.random.default_rng(seed).random(known.shape) < ROWS / known.sum()
    x, y = label_rows(_read(reader, learned, content), learned, known)
    asked = read_samples(
        observed,
        queries.video,
        queries.now_us,
        horizon_us=queries.horizon_us[:, None],
        value=np.full((len(queries.video), 1), np.nan),
        cascade=cascade,
        signals=schema.signals,
    )
    asked_set = _sample_set(observed, asked, schema, int(queries.now_us.max()), usual)
    rows = _read(reader, asked_set, content_inputs(observed.data.videos, schema)).rows()
    threads = 1 if len(y) < ROWS_OF_A_THREAD else 0
    out = np.empty((len(rows), ENSEMBLES))
    for i, objective in enumerate(_OBJECTIVES):
        trees = lightgbm.train(
            _PARAMETERS | objective | {"seed": seed, "num_threads": threads}, lightgbm.Dataset(x, y), ROUNDS
        )
        out[:, i] = trees.predict(rows)
        if advance:
            advance(1)
    np.minimum(out[:, 1], out[:, 2], out=out[:, 1])
    np.maximum(out[:, 3], out[:, 2], out=out[:, 3])
    return np.maximum(out, 0.0)


def _sample_set(
    observed: Observed,
    samples: Samples,
    schema: Schema,
    until_us: int,
    usual: tuple[NDArray[np.float64], NDArray[np.float64]],
) -> SampleSet:
    """Return samples with the features of their creators. ``usual`` holds the usual pace and the base forecast of growth."""
    data = observed.data
    known = curves(observed.metric, observed.totals, data.published_us, until_us, continuous=observed.continuous)
    known = replace(known, pace=usual[0], base=usual[1])
    return SampleSet.of(data, known, samples, schema.max_horizon_us, len(data.videos))


def _read(reader: TreeReader, sample_set: SampleSet, content: ContentInputs) -> TreeInputs:
    return read_inputs(reader, sample_set, content, NeighbourInputs.none(len(sample_set)))
