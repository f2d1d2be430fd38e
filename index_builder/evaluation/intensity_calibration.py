"""Calibrates intensities, so that expected and real counts have the same sum for every type and age.

Over-dispersed counts make the likelihood robust: large counts have little weight. So the intensity with the highest
likelihood need not have the right sum. This module fits a factor for every type and age (``IntensityHead.log_factor``).
At each knot of age, the score of the fit is the difference between the expected and the real sum over all windows of
``index_builder.evaluation.time_rescaling``, silences included.

All windows of one video together are one observation, as in ``index_builder.training.rate_fit``. The variance of the
videos' scores at a knot says how much is known at this knot. Where little is known, the factor follows the factors of
neighbouring ages. Training videos are fitted first. Then the holdout corrects the result, because an intensity expects
the counts of its training videos a little too well, and because engagement changes over time.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.datasets.observed import Observed
from index_builder.evaluation.process_states import before_rows, scored_rows
from index_builder.evaluation.time_rescaling import window_integrals, windows
from index_builder.samples.exposure import Exposure
from model.features.tokens import Tokens
from model.mhp.likelihood import FACTOR_KNOTS, IntensityHead, factor_weights
from model.mhp.network import MambaHawkes
from model.network import M3TR

Floats = NDArray[np.float64]

VIDEOS: Final = 600
"""Maximum number of training videos, and of holdout videos, that are used."""
_LEVEL: Final = (1.0, 0.3)
"""Standard deviation of the mean of the log factor over all ages: for training videos, and for the correction."""
_WALK: Final = (0.5, 0.15)
"""Standard deviation of the random walk of the log factor from one knot to the next, likewise."""
_STEPS: Final = 20
_TINY: Final = 1e-9


@dataclass(frozen=True, slots=True)
class WindowMeans:
    """The windows of one type with their integrals, see ``Windows``.

    Attributes:
        video: (W,) int64, the window's sequence.
        weights: (W, len(FACTOR_KNOTS)) float64, weights of the knots.
        gap, active: (W,) float64, integrals of the intensity over the gap before the window and over the window.
        dispersion: (W,) float64.
        counts: (W,) float64.
    """

    video: NDArray[np.int64]
    weights: Floats
    gap: Floats
    active: Floats
    dispersion: Floats
    counts: Floats


def calibrate_network(
    net: M3TR, observed: Observed, samples: Sequence[tuple[NDArray[np.int64], int]], oldest_us: int, seed: int
) -> None:
    """Fit the factors of a network's intensity.

    ``samples`` holds the videos (N,), with repetitions, and the time up to which their rows are read: first of the training
    samples, then of the holdout. At most VIDEOS videos of each are used. ``oldest_us`` is the greatest age.
    """
    rng = np.random.default_rng(seed)
    network, head = copy.deepcopy(net.mhp).cpu().eval(), copy.deepcopy(net.intensity).cpu()
    parts = []
    for video, until_us in samples:
        videos = np.sort(rng.permutation(np.unique(video))[:VIDEOS])
        parts.append(scored_rows(observed, videos, until_us, oldest_us))
    calibrate_intensity(network, head, parts)
    with torch.no_grad():
        net.intensity.log_factor.copy_(head.log_factor)


def calibrate_intensity(network: MambaHawkes, head: IntensityHead, parts: list[tuple[Tokens, Exposure]]) -> None:
    """Fit the factors of ``head`` to one or two parts of the videos: training videos, then the holdout.

    Both modules are on the CPU. A part consists of the tokens and the exposure of some videos.
    """
    minimum = np.ones((head.n_types, len(FACTOR_KNOTS)))
    for (tokens, exposure), level, walk in zip(parts, _LEVEL, _WALK, strict=False):
        found = windows(exposure)
        before = before_rows(network, head, tokens, exposure)
        gap, active, dispersion = window_integrals(head, *before, exposure, found)
        sequence = np.repeat(np.arange(len(exposure.offsets) - 1), np.diff(exposure.offsets))[found.row]
        weights = factor_weights(torch.from_numpy(exposure.previous_s[found.row])).numpy()
        for k in range(head.n_types):
            mine = found.kind == k
            if found.counts[mine].any():
                arrays = (sequence, weights, gap, active, dispersion, found.counts)
                moved, minimum[k] = moved_factor(WindowMeans(*(a[mine] for a in arrays)), level, walk, minimum[k])
                head.log_factor[k] += torch.from_numpy(moved).to(head.log_factor)


def moved_factor(means: WindowMeans, level: float, walk: float, minimum: Floats) -> tuple[Floats, Floats]:
    """Return the change of the log factor at each knot, and the variances of the scores, both (len(FACTOR_KNOTS),).

    A variance is the sum of the squared scores of all videos at a knot over the expected count at this knot. It is never
    smaller than ``minimum``, because few videos do not show the whole variance.
    """
    knots = len(FACTOR_KNOTS)
    step = np.diff(np.eye(knots), axis=0)
    prior = step.T @ step / walk**2 + 1 / (knots * level) ** 2
    own = np.unique(means.video, return_inverse=True)[1]
    out, spread = np.zeros(knots), minimum
    for done in range(_STEPS):
        factor = np.exp(means.weights @ out)
        silent = 1 + means.gap * factor / means.dispersion
        mean = means.active * factor / silent
        if done % 5 == 0:
            by_video = np.stack([np.bincount(own, column * (means.counts - mean)) for column in means.weights.T])
            spread = np.maximum(((by_video**2).sum(1) + _TINY) / (means.weights.T @ mean + _TINY), minimum)
        certain = 1 / (means.weights @ spread)
        slope = means.weights.T @ ((means.counts - mean) * certain) - prior @ out
        curvature = (means.weights * (mean / silent * certain)[:, None]).T @ means.weights + prior
        out = out + np.clip(np.linalg.solve(curvature, slope), -1.0, 1.0)
    return out, spread
