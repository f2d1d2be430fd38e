"""Estimates how long a training run will take, from the size of its data. The estimate is printed before training starts.

The constants were measured on two idle cores of a server without a GPU. Different cores may take half or twice as
long.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from index_builder.datasets.observed import Observed
from index_builder.training.config import TrainConfig
from index_builder.training.trainer import FUSION_ROWS

_MAX_TOKENS: Final = 200
"""Maximum number of tokens per video. The number is limited because all rows in one bin of the video's age form one token."""
_BATCH_VIDEOS: Final = 400
_START_S: Final = 25.0
"""Seconds that do not depend on the size of the data: compilers, the export of the networks, the report."""
_TEXT_S: Final = 2.5e-3
"""Seconds per video for encoding the title and the tags."""
_BATCH_S: Final = 2.0
"""Seconds per training batch of 6,000 tokens with its samples."""
_FUSION_S: Final = 0.05
"""Seconds per batch of stage two."""
_SAMPLE_S: Final = 6e-4
"""Seconds per sample: drawing, encoding, finding the sample's neighbours."""


def estimate_s(observed: Observed, config: TrainConfig, further: int = 0) -> float:
    """Return the estimated duration in seconds of training on ``observed`` on a CPU, with a number of further metrics."""
    videos = len(observed.data.videos)
    rows = np.diff(observed.events.offsets) + np.diff(observed.counters.offsets)
    tokens = int(np.minimum(rows, _MAX_TOKENS).sum())
    batches = max(-(-tokens // config.batch_tokens), -(-videos // _BATCH_VIDEOS), 1)
    cuts = config.cuts_per_video * videos if observed.continuous else len(observed.totals)
    fusion = config.fusion_epochs * -(-min(cuts, config.fusion_samples) // FUSION_ROWS)
    once = config.passes(batches, videos) * batches * _BATCH_S + fusion * _FUSION_S + cuts * _SAMPLE_S
    # A further metric has no first stage, and twice the passes of the second one.
    once += further * (2 * fusion * _FUSION_S + cuts * _SAMPLE_S + batches * _BATCH_S)
    models = 2 if config.refit and videos < config.few_videos else 1
    return _START_S + videos * _TEXT_S + models * once


def duration_in_words(seconds: float) -> str:
    """Return a duration in words, rounded to the precision of the estimate."""
    if seconds < 90:
        return f"about {max(round(seconds / 10) * 10, 10)} s"
    if seconds < 90 * 60:
        return f"about {round(seconds / 60)} min"
    return f"about {seconds / 3600:.1f} h"
