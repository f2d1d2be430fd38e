"""Gradient boosting on hand-made features: the usual alternative to the model.

LightGBM learns growth from feature rows. Each row combines one horizon with what is known of a video at one time:

    engagement  the counts, rates and gaps of the newest reading, and the time since that reading
    signals     the newest readings and their changes
    video       category, language, duration, hour and weekday of publication, attributes
    creator     the counts and growth of the creator's earlier videos
    text        the principal components of the text's sentence vector

Three tree ensembles forecast the mean, the lower end and the upper end of the interval.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.samples.network_inputs import content_inputs, creator_rows
from index_builder.samples.queries import Queries
from index_builder.samples.samples import Samples, draw_samples, read_samples
from index_builder.trees.fit import load_lightgbm
from model.features.schema import Schema
from model.growth.curves import curves, usual_pace

ROUNDS: Final = 400
ROWS: Final = 500_000
"""Maximum number of training rows."""
_COMPONENTS: Final = 32
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
    {"objective": "quantile", "alpha": 0.1},
    {"objective": "regression"},
    {"objective": "quantile", "alpha": 0.9},
)


class FeatureTable:
    """Computes feature rows for the videos of one data set.

    Args:
        observed: the data set.
        schema: gives the codes of categories and languages, and the maximum age and horizon of training samples.
        until_us: only data up to this time is read.
        pace: usual growth by age, an array of shape (N_CURVE,). If ``pace`` is None, the usual growth is computed from
            ``observed``.
    """

    def __init__(
        self, observed: Observed, schema: Schema, until_us: int, pace: NDArray[np.float64] | None = None
    ) -> None:
        data = observed.data
        self._observed, self._schema = observed, schema
        self._known = curves(
            observed.metric, observed.totals, data.published_us, until_us, continuous=observed.continuous
        )
        self._known = replace(self._known, pace=usual_pace(self._known) if pace is None else pace)
        self.pace = self._known.pace
        content = content_inputs(data.videos, schema)
        self.sentence = content.sentence
        self._fixed = np.concatenate(
            [content.category[:, None], content.language[:, None], content.static, content.attributes], axis=1
        ).astype(np.float32)

    def rows(self, samples: Samples, components: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return one feature row per sample and horizon.

        The result has shape (N * J, features) and dtype float32, for N samples with J horizons each. ``components``
        (384, 32) projects the sentence vectors to 32 dimensions.
        """
        data, n_labels = self._observed.data, samples.horizon_s.shape[1]
        creator = creator_rows(
            data.videos,
            data.published_us,
            self._known,
            samples.video,
            samples.now_us,
            self._schema.max_horizon_us,
            len(data.videos),
        )
        at_cut = np.concatenate(
            [
                samples.summary,
                samples.last,
                samples.branch[:, 1],
                samples.signals,
                creator,
                self._fixed[samples.video],
                self.sentence[samples.video] @ components,
            ],
            axis=1,
        ).astype(np.float32)
        horizon = samples.horizon_s.ravel()
        age = samples.age_s.repeat(n_labels)
        asked = np.stack([np.log1p(horizon), np.log((age + horizon + 60) / (age + 60))], axis=1).astype(np.float32)
        return np.concatenate([at_cut.repeat(n_labels, axis=0), asked], axis=1)


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

    Return a float64 array of shape (Q, 3) with the 0.1 quantile, the mean and the 0.9 quantile for each of Q queries.
    ``past`` ends at ``until_us``. The lower quantile never exceeds the mean, and the upper quantile is never below the
    mean. ``advance`` is called with 1 after each of the three ensembles is trained.

    Raises:
        DataError: LightGBM is not installed.
    """
    lightgbm = load_lightgbm()
    samples = draw_samples(
        past,
        until_us=until_us,
        max_age_us=schema.max_age_us,
        max_horizon_us=schema.max_horizon_us,
        n_labels=_LABELS,
        cuts_per_video=_CUTS,
        seed=seed,
        signals=schema.signals,
    )
    samples = samples.take(~samples.cold)
    limit = ROWS // _LABELS
    if len(samples.video) > limit:
        chosen = np.random.default_rng(seed).choice(len(samples.video), limit, replace=False)
        samples = samples.take(np.sort(chosen))
    learned = FeatureTable(past, schema, until_us)
    centred = learned.sentence - learned.sentence.mean(0)
    components = np.linalg.svd(centred.T @ centred)[0][:, :_COMPONENTS].astype(np.float32)
    x, y = learned.rows(samples, components), samples.growth.ravel()
    known = np.isfinite(y)
    x, y = x[known], y[known]
    query_samples = read_samples(
        observed,
        queries.video,
        queries.now_us,
        horizon_us=queries.horizon_us[:, None],
        value=np.full((len(queries.video), 1), np.nan),
        signals=schema.signals,
    )
    asked = FeatureTable(observed, schema, int(queries.now_us.max()), learned.pace).rows(query_samples, components)
    out = np.empty((len(asked), len(_OBJECTIVES)))
    for i, objective in enumerate(_OBJECTIVES):
        trees = lightgbm.train(_PARAMETERS | objective | {"seed": seed}, lightgbm.Dataset(x, y), ROUNDS)
        out[:, i] = trees.predict(asked)
        if advance:
            advance(1)
    out[:, 0] = np.minimum(out[:, 0], out[:, 1])
    out[:, 2] = np.maximum(out[:, 2], out[:, 1])
    return out
