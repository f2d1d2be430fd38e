"""Finds neighbours for training: the neighbours that a bank would have returned at a past time.

The vectors come from the network after stage one. Stage two does not change these vectors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.samples.network_inputs import SampleSet, creator_codes
from index_builder.samples.past_neighbours import (
    BankArrays,
    Candidates,
    find_candidates,
    nearest_growth_error,
    neighbour_features,
    unit,
)
from index_builder.samples.samples import read_samples
from index_builder.training.config import TrainConfig
from index_builder.training.objective import Encoded, NeighbourInputs, Objective
from model.cascade import Cascade
from model.engagement.bins import SECOND_US
from model.features.signals import Signal
from model.growth.curves import Curves, trajectory_cuts, usable_from

_WEIGHTS: Final = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Candidate weights of content similarity."""


@dataclass(frozen=True, slots=True)
class PointInTimeBank:
    """Finds the neighbours that a bank would have returned at any past time.

    ``centre`` (d_model,) is the mean state. The mean state is subtracted from every state to make a trajectory vector.
    ``creators`` (V,) are codes of the videos' creators.
    """

    arrays: BankArrays
    centre: NDArray[np.float32]
    config: TrainConfig
    max_horizon_us: int
    creators: NDArray[np.int64]

    @staticmethod
    def of(
        observed: Observed,
        known: Curves,
        objective: Objective,
        config: TrainConfig,
        max_horizon_us: int,
        cascade: Cascade | None,
        signals: Sequence[Signal] = (),
    ) -> PointInTimeBank:
        """Encode the content of every video, and the video's state at every age bucket. Return the bank of these vectors."""
        published, width = observed.data.published_us, objective.net.mhp.shape.d_model
        content = unit(objective.every_content())
        usable_us = usable_from(known, published, known.ages_us[:, 0])
        creators = creator_codes(observed.data.videos)
        video, bucket, age = trajectory_cuts(known)
        if not config.parts.by_trajectory or not len(video):
            none = np.zeros(0, np.int64)
            arrays = BankArrays(
                published, known, content, usable_us, none, none, none, np.zeros((0, width), np.float32)
            )
            return PointInTimeBank(arrays, np.zeros(width, np.float32), config, max_horizon_us, creators)
        usable = usable_from(
            Curves(known.ages_us[video], known.values[video], known.lengths[video]), published[video], age
        )
        cuts = SampleSet.of(
            observed.data,
            known,
            read_samples(
                observed,
                video,
                published[video] + age,
                horizon_us=np.zeros((len(video), 1), np.int64),
                value=np.full((len(video), 1), np.nan),
                cascade=cascade,
                signals=signals,
            ),
            max_horizon_us,
            config.bank_videos,
        )
        states = objective.encode(cuts).hidden
        centre = states.mean(0)
        some = ~cuts.samples.cold
        arrays = BankArrays(
            published, known, content, usable_us, video[some], bucket[some], usable[some], unit(states[some] - centre)
        )
        return PointInTimeBank(arrays, centre, config, max_horizon_us, creators)

    def candidates(self, sample_set: SampleSet, read: Encoded, report: Callable[[int], None]) -> Candidates:
        """Return the candidates of every sample, by content and by trajectory."""
        trajectory = unit(read.hidden - self.centre) if self.config.parts.by_trajectory else np.zeros_like(read.hidden)
        return find_candidates(
            self.arrays,
            sample_set.samples,
            self.arrays.content,
            trajectory,
            limit=self.config.neighbours,
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
