"""Settings of training, with their units. A TOML file may set any of them."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.ablation import Ablation
from model.errors import DataError

PRECISIONS: Final = ("auto", "float32", "bfloat16")
_DEPEND_ON_SIZE: Final = ("fusion_epochs", "weight_decay", "head_dropout", "validation_share")
"""Settings with the default -1, which means that the value depends on the number of videos."""

HOLDOUT_VIDEOS: Final = 100
"""Number of videos that are held out if a third of the videos is enough for it."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """Defines how a bundle is trained."""

    epochs: int = 0
    """Number of passes of stage one over the training samples.

    With 0, the number of passes depends on the number of batches. There are 3 to 9 passes, or 2 to 30 passes if there
    are few videos.
    """
    fusion_epochs: int = -1
    """Number of passes of stage two, which learns to use neighbours.

    With 0, retrieval is turned off. With -1, there are 12 passes, or 4 if there are few videos.
    """
    patience: int = 5
    """Number of passes without a lower holdout loss after which a stage stops and returns to its best pass.

    With 0, every pass is made and the last pass is kept.
    """
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW. The rate rises linearly, then falls as a cosine to 2 % of the peak."""
    weight_decay: float = -1.0
    """AdamW's weight decay of matrices, 0 .. 1. With -1, the weight decay is 0.02, or 0.3 if there are few videos."""
    text_dropout: float = 0.4
    """Fraction of text features dropped in training, 0 .. 0.95."""
    head_dropout: float = -1.0
    """Fraction of the head's units dropped in training, 0 .. 0.95. With -1, the fraction is 0.15, or 0.5 if there are few videos."""
    few_videos: int = 20_000
    """A data set with fewer videos than this number is treated as having few videos.

    With few videos, the head is small, so that the head cannot memorise the videos. Each video also has more cut points.
    """
    refit: bool = True
    """If there are few videos, train a second model on all videos, including the holdout.

    The second model is trained for the number of passes that was best for the first model.
    """
    likelihood_weight: float = 0.1
    """Weight of the Hawkes log-likelihood per token, relative to the forecast loss."""
    validation_share: float = -1.0
    """Fraction of the videos that are held out for calibration and evaluation, 0.01 .. 0.5. The newest videos are held out.

    With -1, the fraction is 0.1, or as much as HOLDOUT_VIDEOS videos need, but at most a third.
    """
    max_horizon_h: float = 168.0
    """Longest horizon that the model will forecast, in hours."""
    max_age_h: float = 720.0
    """Maximum age of a training sample in hours."""
    cuts_per_video: int = 0
    """Number of cut points per video. With 0, the number is 16, or 64 if there are few videos.

    If the metric is fed by counters, cut points are at snapshots, so a video with fewer snapshots has fewer cut points.
    """
    labels_per_cut: int = 6
    """Number of labels per sample. A label is a later observation that the model learns from."""
    bank_videos: int = 60_000
    """Maximum number of videos in the bank. The newest videos are kept.

    A creator's features also use only this many of the newest videos. Search is exact up to about 20,000 videos.
    """
    neighbours: int = 10
    """Number of neighbours that are fused into a forecast (K)."""
    fusion_samples: int = 400_000
    """Maximum number of training samples in stage two."""
    batch_tokens: int = 6000
    """Maximum number of tokens per training batch, including padding."""
    d_model: int = 64
    """Width of the Mamba-Hawkes network."""
    n_layers: int = 2
    """Number of layers of the Mamba-Hawkes network."""
    precision: str = "auto"
    """Precision of the linear layers in training: float32, bfloat16 or auto.

    With bfloat16, the scan stays float32. With auto, the precision is bfloat16 on CUDA and float32 on a CPU.
    """
    attributes: tuple[str, ...] | None = None
    """Further columns of videos.parquet that the model reads. By default, the columns are chosen by their values."""
    signals: tuple[str, ...] | None = None
    """Further numeric columns of counters.parquet that the model reads. By default, all of them are read."""
    exclude: tuple[str, ...] = ()
    """Further columns of either file that the model does not read."""
    tree_rounds: int = 400
    """Maximum number of boosted trees for the mean, and for the median. With 0, the ensemble has no trees (an ablation)."""
    simple_member: bool = True
    """If False, the ensemble does not contain the simple growth forecast (an ablation)."""
    use_mhp: bool = True
    """If False, the model has no Mamba-Hawkes state, no trajectory vectors and no likelihood (an ablation)."""
    use_trajectory: bool = True
    """If False, the model finds neighbours by content only (an ablation)."""
    use_retrieval: bool = True
    """If False, the model uses no neighbours (an ablation)."""
    use_content: bool = True
    """If False, the model has no content vector and finds neighbours by trajectory only (an ablation)."""
    use_cascade: bool = True
    """If False, forecasts do not start from the growth that a self-exciting cascade expects (an ablation).

    This setting matters only for metrics that are fed by events.
    """

    def __post_init__(self) -> None:
        limits = {
            "epochs": (0, 1000),
            "fusion_epochs": (0, 1000),
            "patience": (0, 1000),
            "learning_rate": (1e-6, 1.0),
            "weight_decay": (0.0, 1.0),
            "text_dropout": (0.0, 0.95),
            "head_dropout": (0.0, 0.95),
            "likelihood_weight": (0.0, 100.0),
            "validation_share": (0.01, 0.5),
            "max_horizon_h": (0.1, 8760.0),
            "max_age_h": (0.1, 87600.0),
            "cuts_per_video": (0, 1000),
            "few_videos": (0, 1_000_000_000),
            "labels_per_cut": (1, 100),
            "bank_videos": (0, 10_000_000),
            "neighbours": (1, 100),
            "tree_rounds": (0, 10_000),
            "fusion_samples": (1, 100_000_000),
            "batch_tokens": (64, 1_000_000),
            "d_model": (8, 1024),
            "n_layers": (1, 16),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            whole = isinstance(low, int)
            fits = isinstance(value, int if whole else int | float) and not isinstance(value, bool)
            if not fits or not (low <= value <= high or (name in _DEPEND_ON_SIZE and value == -1)):
                allowed = f"a {'whole ' if whole else ''}number from {low} to {high}"
                raise DataError(f"{name}: {value!r}; allowed: {allowed}{', or -1' if name in _DEPEND_ON_SIZE else ''}")
        if self.precision not in PRECISIONS:
            raise DataError(f"precision: {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        for name, given in (
            ("attributes", self.attributes or ()),
            ("signals", self.signals or ()),
            ("exclude", self.exclude),
        ):
            if not isinstance(given, tuple) or not all(isinstance(item, str) for item in given):
                raise DataError(f"{name}: {given!r}; allowed: a list of names of columns")
        for name in (
            "refit",
            "simple_member",
            "use_mhp",
            "use_trajectory",
            "use_retrieval",
            "use_content",
            "use_cascade",
        ):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name}: {getattr(self, name)!r}; allowed: true, false")

    def suited_to(self, videos: int) -> TrainConfig:
        """Return a copy of these settings, with the values that depend on the number of ``videos`` filled in."""
        few = videos < self.few_videos
        return dataclasses.replace(
            self,
            fusion_epochs=self.fusion_epochs if self.fusion_epochs >= 0 else (4 if few else 12),
            weight_decay=self.weight_decay if self.weight_decay >= 0 else (0.3 if few else 0.02),
            head_dropout=self.head_dropout if self.head_dropout >= 0 else (0.5 if few else 0.15),
            cuts_per_video=self.cuts_per_video or (64 if few else 16),
            validation_share=self.validation_share
            if self.validation_share >= 0
            else min(max(0.1, HOLDOUT_VIDEOS / max(videos, 1)), 1 / 3),
        )

    def passes(self, batches: int, videos: int) -> int:
        """Return the number of passes of stage one.

        ``batches`` is the number of batches per pass, and ``videos`` is the number of videos in the data set.
        """
        minimum, steps, maximum = (2, 112, 30) if videos < self.few_videos else (3, 400, 9)
        return self.epochs or min(max(minimum, -(-steps // max(batches, 1))), maximum)

    @property
    def parts(self) -> Ablation:
        """Return which components of the method are trained."""
        return Ablation(
            self.use_mhp,
            self.use_trajectory,
            self.use_retrieval and self.fusion_epochs != 0,
            self.use_content,
            self.use_cascade,
        )

    @staticmethod
    def read(path: Path | None) -> TrainConfig:
        """Return the defaults, overridden by the TOML file at ``path``.

        Raises:
            DataError: the file cannot be read, or it contains an unknown setting or a value out of range.
        """
        if path is None:
            return TrainConfig()
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path}: {error}") from None
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        if unknown := sorted(set(values) - names):
            raise DataError(f"{path}: {unknown[0]!r} is not a setting; allowed: {', '.join(sorted(names))}")
        lists = {name: tuple(value) for name, value in values.items() if isinstance(value, list)}
        return TrainConfig(**values | lists)
