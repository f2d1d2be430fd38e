"""Estimates how long a training run will take, from the size of its data. The estimate is printed before training starts.

Every part of the estimate grows in proportion to the videos or to their readings, and most parts have a maximum. The
constants were measured on one quiet core of a server without a GPU. Different cores may take half or twice as long.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from index_builder.datasets.observed import Observed, snapshot_rows
from index_builder.evaluation.intensity_calibration import VIDEOS
from index_builder.training.config import TrainConfig
from index_builder.training.rate_spans import rate_forecasts
from index_builder.training.trainer import FUSION_ROWS
from index_builder.trees.fit import ROWS

_MAX_TOKENS: Final = 220
"""Maximum number of tokens per video. The number is limited because all rows in one bin of the video's age form one token."""
_BATCH_VIDEOS: Final = 400
_CUTS_PER_PASS: Final = 8
"""Maximum number of samples of one video in a pass of stage one."""
_START_S: Final = 25.0
"""Seconds that do not depend on the size of the data: compilers, the export of the networks, the report."""
_TEXT_S: Final = 2.5e-3
"""Seconds per video for encoding the title and the tags."""
_TOKEN_S: Final = 4e-5
"""Seconds per token in a pass of stage one, with its likelihood."""
_CUT_S: Final = 6e-4
"""Seconds per sample in a pass of stage one."""
_FUSION_S: Final = 0.015
"""Seconds per batch of stage two."""
_SAMPLE_S: Final = 2e-4
"""Seconds per sample: drawing the sample and reading its state."""
_PAIR_S: Final = 1e-8
"""Seconds per pair of a sample and a video of the bank, for the search of neighbours."""
_TREE_ROW_S: Final = 5.5e-7
"""Seconds per training row and tree, for the trees of the mean and of the median together."""
_CASCADE_S: Final = 0.03
"""Seconds per video for fitting the cascade."""
_CALIBRATION_S: Final = 3e-3
"""Seconds per video for fitting the factors of the intensity."""
_FORECAST_S: Final = 1e-3
"""Seconds per forecast that the rates are fitted to."""


def estimate_s(observed: Observed, config: TrainConfig, further: int = 0) -> float:
    """Return the estimated duration in seconds of training on ``observed`` on a CPU, with a number of further metrics."""
    videos = len(observed.data.videos)
    snapshots = np.diff(np.searchsorted(snapshot_rows(observed.metric), observed.metric.offsets))
    rows = np.diff(observed.events.offsets) if observed.continuous else snapshots
    tokens = int(np.minimum(rows, _MAX_TOKENS).sum())
    batches = max(-(-tokens // config.batch_tokens), -(-videos // _BATCH_VIDEOS), 1)
    per_video = np.full(videos, config.cuts_per_video)
    if not observed.continuous:
        per_video = np.minimum(per_video, snapshots)
    cuts, in_a_pass = int(per_video.sum()), int(np.minimum(per_video, _CUTS_PER_PASS).sum())
    once = config.passes(batches, videos) * (tokens * _TOKEN_S + in_a_pass * _CUT_S)
    fused = min(cuts, config.fusion_samples) if config.fusion_epochs else 0
    once += config.fusion_epochs * -(-fused // FUSION_ROWS) * _FUSION_S
    once += cuts * (_SAMPLE_S + min(videos, config.bank_videos) * _PAIR_S)
    once += min(fused * config.labels_per_cut, ROWS) * config.tree_rounds * _TREE_ROW_S
    once += videos * _CASCADE_S if observed.continuous and config.use_cascade else 0
    # A further metric has no first stage, and twice the passes of the second one.
    again = 2 * config.fusion_epochs * -(-fused // FUSION_ROWS) * _FUSION_S + tokens * _TOKEN_S + cuts * _SAMPLE_S
    again += min(fused * config.labels_per_cut, ROWS) * config.tree_rounds * _TREE_ROW_S
    once += further * again
    models = 2 if config.refit and videos < config.few_videos else 1
    calibration = min(videos, 2 * VIDEOS) * _CALIBRATION_S if config.use_mhp else 0
    rates = rate_forecasts(observed, config.validation_share) * _FORECAST_S
    return _START_S + videos * _TEXT_S + models * once + calibration + rates


def duration_in_words(seconds: float) -> str:
    """Return a duration in words, rounded to the precision of the estimate."""
    if seconds < 90:
        return f"about {max(round(seconds / 10) * 10, 10)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
