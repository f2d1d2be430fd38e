"""Fits the boosted trees and chooses their weights in the ensemble."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index_builder.neighbours.neighbour_inputs import NeighbourInputs, numbers_read
from index_builder.samples.network_inputs import ContentInputs, SampleSet
from model.engagement.bins import SECOND_US
from model.errors import DataError
from model.features.schema import Schema
from model.quantiles.head import N_CENTRE
from model.trees import N_COMPONENTS, TreeInputs, TreeReader

Floats = NDArray[np.float32]

ROWS: Final = 500_000
"""Maximum number of training rows."""
_CHUNK: Final = 10_000
"""Number of samples whose inputs are computed together, which limits the memory."""
ROWS_OF_A_THREAD: Final = 200_000
"""Number of training rows from which trees are fitted by all threads. With fewer rows, threads mostly wait for each other."""
_PATIENCE: Final = 40
_PARAMETERS: Final[dict[str, Any]] = {
    "feature_fraction": 0.4,
    "bagging_fraction": 0.8,
    "bagging_freq": 1,
    "verbose": -1,
    "deterministic": True,
    "force_col_wise": True,
}
_FEW_VIDEOS: Final[dict[str, Any]] = {"learning_rate": 0.05, "num_leaves": 31}
"""With few videos, trees are smaller and take smaller steps, so that they do not learn the videos by heart."""
_MANY_VIDEOS: Final[dict[str, Any]] = {"learning_rate": 0.1, "num_leaves": 63}
_OBJECTIVES: Final[tuple[dict[str, Any], ...]] = ({"objective": "regression"}, {"objective": "quantile", "alpha": 0.5})
_PRIOR_SAMPLES: Final = 100.0
_WEIGHTS: Final = np.linspace(0, 1, 11)


@dataclass(frozen=True, slots=True)
class FittedTrees:
    """Boosted trees and what they read.

    ``boosters``: the trees of the mean and of the median, as LightGBM dumps them.
    ``weight`` (N_CENTRE,): weights in the ensemble.
    ``reader``: computes their inputs.
    """

    boosters: tuple[Any, ...]
    weight: Floats
    reader: TreeReader

    def arrays(self) -> dict[str, NDArray[np.generic]]:
        """Return the arrays that are stored in a bundle's weights."""
        return {
            "trees.weight": self.weight,
            "trees.projection": self.reader.projection,
            "trees.category": self.reader.by_name[0],
            "trees.language": self.reader.by_name[1],
        }

    def inputs(self, sample_set: SampleSet, content: ContentInputs, found: NeighbourInputs) -> TreeInputs:
        """Return what the trees read of samples and their horizons, computed as the service computes it."""
        return read_inputs(self.reader, sample_set, content, found)

    def centre(self, inputs: TreeInputs) -> Floats:
        """Return the mean and the median of growth of every sample and horizon, (N, J, N_CENTRE)."""
        rows = inputs.rows()
        out = np.stack([booster.predict(rows) for booster in self.boosters], axis=-1)
        return np.asarray(np.maximum(out, 0), np.float32).reshape(*inputs.asked.shape[:2], N_CENTRE)


def load_lightgbm() -> Any:
    """Return the module ``lightgbm``.

    Raises:
        DataError: LightGBM, or the system library that it needs, is not installed.
    """
    try:
        import lightgbm
    except (ImportError, OSError) as error:
        raise DataError(f"LightGBM cannot be loaded ({error}); needed: pip install lightgbm, and libgomp") from None
    return lightgbm


def can_fit_trees() -> bool:
    """Return whether LightGBM can be loaded. If not, print why the ensemble has no trees."""
    try:
        load_lightgbm()
    except DataError as error:
        print(f"the ensemble has no boosted trees: {error}", file=sys.stderr)
        return False
    return True


def projection_of(sentence: Floats, videos: NDArray[np.int64]) -> Floats:
    """Return the projection (D, N_COMPONENTS) to the principal components of the text vectors of ``videos``."""
    mine = sentence[np.unique(videos)].astype(np.float64)
    centred = mine - mine.mean(0)
    vectors: Floats = np.linalg.eigh(centred.T @ centred)[1][:, ::-1][:, :N_COMPONENTS].astype(np.float32)
    return np.ascontiguousarray(vectors)


def growth_by_name(sample_set: SampleSet, codes: NDArray[np.int64], n_names: int) -> Floats:
    """Return the mean growth of the samples of each name, (n_names + 1,), shrunk towards the mean of all.

    ``codes`` (V,) are the codes of the videos' names.
    """
    samples = sample_set.samples
    known = np.isfinite(samples.growth) & ~samples.cold[:, None]
    code = codes[samples.video]
    total = np.bincount(code, np.where(known, samples.growth, 0).sum(1), n_names + 1)
    number = np.bincount(code, known.sum(1), n_names + 1)
    mean = total.sum() / max(number.sum(), 1)
    return np.asarray((total + _PRIOR_SAMPLES * mean) / (number + _PRIOR_SAMPLES), np.float32)


def tree_reader(
    sample_set: SampleSet,
    content: ContentInputs,
    schema: Schema,
    base: NDArray[np.float64],
    projection: Floats | None = None,
    *,
    reads_content: bool = True,
) -> TreeReader:
    """Return what computes the rows of trees that learn from ``sample_set``. ``base`` are the weights of the base forecast.

    ``projection`` is the projection of the text. By default, it is fitted to the samples' videos.
    """
    if projection is None:
        projection = projection_of(content.sentence, sample_set.samples.video)
    return TreeReader(
        projection,
        (
            growth_by_name(sample_set, content.category, len(schema.categories)),
            growth_by_name(sample_set, content.language, len(schema.languages)),
        ),
        base,
        len(schema.types),
        schema.max_horizon_us / SECOND_US,
        reads_content,
    )


def read_inputs(
    reader: TreeReader, sample_set: SampleSet, content: ContentInputs, found: NeighbourInputs
) -> TreeInputs:
    """Return what the trees read of samples, their neighbours and their horizons, computed as the service computes it."""
    samples, video = sample_set.samples, sample_set.samples.video
    head: dict[str, NDArray[np.generic]] = {
        "summary": numbers_read(samples, np.arange(len(video))),
        "creator": sample_set.creator,
        "static": content.static[video],
        "attributes": content.attributes[video],
        "signals": samples.signals,
        "last": samples.last,
        "read": samples.branch[:, 1],
        "category": content.category[video],
        "language": content.language[video],
        "neighbours": found.features,
        "mask": found.mask,
    }
    components = content.sentence[video] @ reader.projection
    parts = []
    for start in range(0, max(len(video), 1), _CHUNK):
        rows = slice(start, start + _CHUNK)
        mine = {name: value[rows] for name, value in head.items()}
        now_s, horizon_s = samples.now_us[rows] / SECOND_US, samples.horizon_s[rows]
        parts.append(reader.read(mine, components[rows], samples.age_s[rows], now_s, horizon_s))
    return TreeInputs(np.concatenate([part.known for part in parts]), np.concatenate([part.asked for part in parts]))


def label_rows(
    inputs: TreeInputs, sample_set: SampleSet, chosen: NDArray[np.bool_]
) -> tuple[Floats, NDArray[np.float64]]:
    """Return the rows (n, F + N_ASKED) and the growth (n,) of the labels that ``chosen`` (N, J) selects."""
    at, column = np.nonzero(chosen)
    return np.concatenate([inputs.known[at], inputs.asked[at, column]], axis=1), sample_set.samples.growth[at, column]


def fit_trees(
    fit: tuple[SampleSet, NeighbourInputs],
    judged: tuple[SampleSet, NeighbourInputs, Floats] | None,
    content: ContentInputs,
    reader: TreeReader,
    rounds: int,
    seed: int,
    earlier: FittedTrees | None = None,
    *,
    few: bool,
) -> FittedTrees:
    """Fit the trees to warm samples and their neighbours.

    Args:
        fit: training samples and their neighbours.
        judged: other samples, their neighbours, and the centre (N, J, N_CENTRE) that the network forecasts for them.
            They decide on the number of trees and on the weights. None if ``earlier`` decides.
        content: the content of all videos.
        reader: computes the rows.
        rounds: maximum number of trees for the mean, and for the median.
        seed: seed of the random numbers.
        earlier: trees whose numbers and weights are used if ``judged`` is None.
        few: whether the data set has few videos.
    """
    lightgbm = load_lightgbm()
    sample_set, found = fit
    inputs = read_inputs(reader, sample_set, content, found)
    x, y = label_rows(inputs, sample_set, _chosen(sample_set, ROWS, np.random.default_rng(seed)))
    valid = None
    if judged is not None:
        held = read_inputs(reader, judged[0], content, judged[1])
        wanted = np.isfinite(judged[0].samples.growth) & ~judged[0].samples.cold[:, None]
        valid = label_rows(held, judged[0], wanted)
    leaf = int(np.clip(len(y) / 1000, 20, 400))
    threads = 1 if len(y) < ROWS_OF_A_THREAD else 0
    common = _PARAMETERS | (_FEW_VIDEOS if few else _MANY_VIDEOS)
    common |= {"seed": seed, "min_data_in_leaf": leaf, "num_threads": threads}
    boosters = []
    for i, objective in enumerate(_OBJECTIVES):
        parameters = common | objective
        if valid is None or not len(valid[1]):
            number = earlier.boosters[i].num_trees() if earlier is not None else rounds
            boosters.append(lightgbm.train(parameters, lightgbm.Dataset(x, y), max(number, 1)))
            continue
        stop = lightgbm.early_stopping(_PATIENCE, verbose=False)
        trained = lightgbm.train(
            parameters,
            data := lightgbm.Dataset(x, y),
            rounds,
            [lightgbm.Dataset(*valid, reference=data)],
            callbacks=[stop],
        )
        boosters.append(lightgbm.Booster(model_str=trained.model_to_string(num_iteration=trained.best_iteration)))
    trees = FittedTrees(tuple(boosters), np.zeros(N_CENTRE, np.float32), reader)
    if judged is None:
        weight = earlier.weight if earlier is not None else trees.weight
    else:
        weight = _best_weight(judged[0], judged[2], trees.centre(held))
    return FittedTrees(trees.boosters, weight, reader)


def blended(parts: Floats, sample_set: SampleSet, centre: Floats, weight: Floats) -> Floats:
    """Return the network's parts of growth (N, J, N_PARTS) with the centre of the ensemble. Cold samples keep the network's."""
    out = parts.copy()
    warm = ~sample_set.samples.cold
    out[warm, :, :N_CENTRE] += weight * (centre[warm] - parts[warm, :, :N_CENTRE])
    return out


def _chosen(sample_set: SampleSet, limit: int, rng: np.random.Generator) -> NDArray[np.bool_]:
    """Return which labels (N, J) are training rows: at most ``limit`` labels of warm samples, drawn at random."""
    samples = sample_set.samples
    known = np.isfinite(samples.growth) & ~samples.cold[:, None]
    if known.sum() > limit:
        known &= rng.random(known.shape) < limit / known.sum()
    return known


def _best_weight(sample_set: SampleSet, network: Floats, trees: Floats) -> Floats:
    """Return the weights of the trees with the smallest squared error of the mean and the smallest absolute error of the median."""
    samples = sample_set.samples
    known = np.isfinite(samples.growth) & ~samples.cold[:, None]
    y, first, second = samples.growth[known], network[known].astype(np.float64), trees[known].astype(np.float64)
    if not len(y):
        return np.zeros(N_CENTRE, np.float32)
    errors = [[_error(y, first[:, c] + w * (second[:, c] - first[:, c]), c) for w in _WEIGHTS] for c in range(N_CENTRE)]
    return np.asarray(_WEIGHTS[np.argmin(errors, axis=1)], np.float32)


def _error(y: NDArray[np.float64], forecast: NDArray[np.float64], column: int) -> float:
    return float(np.mean((forecast - y) ** 2) if column == 0 else np.mean(np.abs(forecast - y)))
