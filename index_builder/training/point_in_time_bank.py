"""Finds neighbours for training: the neighbours that a bank would have returned at a past time.

Content vectors come from the network after stage one. Stage two does not change these vectors. Trajectory vectors are
shapes of curves.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.neighbours.neighbour_inputs import NeighbourInputs
from index_builder.neighbours.past_neighbours import (
    BankArrays,
    Candidates,
    find_candidates,
    nearest_growth_error,
    neighbour_features,
    unit,
)
from index_builder.samples.network_inputs import SampleSet, creator_codes
from index_builder.training.config import TrainConfig
from index_builder.training.objective import Objective
from model.bank.neighbours import CANDIDATES
from model.engagement.bins import SECOND_US
from model.engagement.types import metric_types
from model.features.shape import shapes
from model.features.trajectory import TrajectorySpace
from model.growth.curves import Curves, trajectory_cuts, usable_from

_WEIGHTS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidate weights of content similarity."""


@dataclass(frozen=True, slots=True)
class PointInTimeBank:
    """Finds the neighbours that a bank would have returned at any past time.

    ``space`` turns shapes into trajectory vectors.
    ``creators`` (V,) are codes of the videos' creators.
    """

    arrays: BankArrays
    space: TrajectorySpace
    config: TrainConfig
    max_horizon_us: int
    creators: NDArray[np.int64]

    @staticmethod
    def of(
        observed: Observed,
        known: Curves,
        space: TrajectorySpace,
        objective: Objective,
        config: TrainConfig,
        max_horizon_us: int,
    ) -> PointInTimeBank:
        """Encode the content of every video, and read the video's shape at every nominal age. Return the bank of these vectors.

        ``space`` turns shapes into trajectory vectors.
        """
        published, metric = observed.data.published_us, metric_types(observed.name, observed.data.types)
        tokens = objective.corpus.tokens
        content = unit(objective.every_content())
        usable_us = usable_from(known, published, known.ages_us[:, 0])
        video, bucket, age = trajectory_cuts(known)
        if not config.parts.by_trajectory:
            video, bucket, age = (array[:0] for array in (video, bucket, age))
        shape = shapes(tokens, video, bucket, metric)
        usable = usable_from(
            Curves(known.ages_us[video], known.values[video], known.lengths[video]), published[video], age
        )
        some = shape.any(1)
        shape, video, bucket, usable = shape[some], video[some], bucket[some], usable[some]
        vectors = unit(space.vectors(shape, bucket))
        arrays = BankArrays(published, known, content, usable_us, video, bucket, usable, vectors)
        return PointInTimeBank(arrays, space, config, max_horizon_us, creator_codes(observed.data.videos))

    def candidates(self, sample_set: SampleSet, report: Callable[[int], None]) -> Candidates:
        """Return the candidates of every sample, by content and by trajectory."""
        samples = sample_set.samples
        trajectory = unit(self.space.vectors(samples.shape, samples.bucket))
        if not self.config.parts.by_trajectory:
            trajectory = np.zeros_like(trajectory)
        return find_candidates(
            self.arrays,
            sample_set.samples,
            self.arrays.content,
            trajectory,
            limit=CANDIDATES * self.config.neighbours,
            bank_videos=self.config.bank_videos,
            report=report,
        )

    def nearest(self, sample_set: SampleSet, candidates: Candidates, weight: float) -> NeighbourInputs:
        """Return the K most similar candidates of every sample. ``weight`` is the weight of content."""
        return NeighbourInputs(
            *neighbour_features(
                self.arrays,
                candidates,
                sample_set.samples,
                self.creators,
                content_weight=weight,
                k=self.config.neighbours,
                max_horizon_us=self.max_horizon_us,
            )
        )

    def best_weight(self, sample_set: SampleSet, candidates: Candidates, weights: Sequence[float] = _WEIGHTS) -> float:
        """Return the weight with which the neighbours' mean growth forecasts the samples best."""
        if self.config.parts.fixed_weight is not None:
            return self.config.parts.fixed_weight
        errors = []
        for weight in weights:
            found = self.nearest(sample_set, candidates, weight)
            errors.append(
                nearest_growth_error(found.features, found.mask, sample_set.samples, self.max_horizon_us / SECOND_US)
            )
        return weights[int(np.nanargmin(errors))] if np.isfinite(errors).any() else 0.5
