"""Settings of training, with units; a TOML file may set any of them."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.ablation import Ablation
from model.errors import DataError

PRECISIONS: Final = ("auto", "float32", "bfloat16")
_DEPEND_ON_SIZE: Final = ("fusion_epochs", "weight_decay", "head_dropout")
"""Settings whose default -1 depends on the number of videos."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a bundle is trained."""

    epochs: int = 0
    """Passes of stage one over the training samples; 0 chooses by the number of batches: 3 to 9 passes, 2 to 30 if there are few videos."""
    fusion_epochs: int = -1
    """Passes of stage two, which learns to use neighbours; 0 turns retrieval off; -1 means 12, or 4 if there are few videos."""
    patience: int = 5
    """Passes without a lower holdout loss after which a stage stops and returns to its best pass; 0 makes every pass and keeps the last."""
    learning_rate: float = 2e-3
    """Peak learning rate of AdamW; linear warm-up, then a cosine down to 2 % of it."""
    weight_decay: float = -1.0
    """AdamW's decay of matrices, 0 .. 1; -1 means 0.02, or 0.3 if there are few videos."""
    text_dropout: float = 0.4
    """Share of text features dropped in training, 0 .. 1."""
    head_dropout: float = -1.0
    """Share of the head's units dropped in training, 0 .. 0.95; -1 means 0.15, or 0.5 if there are few videos."""
    few_videos: int = 20_000
    """Below this number of videos a data set has few. Then the head is small, so that it cannot memorise them,
    and each video has more cut points."""
    refit: bool = True
    """If there are few videos: train a second model on all videos, the holdout included, for as many passes as were best."""
    likelihood_weight: float = 0.01
    """Weight of the Hawkes log-likelihood per token, relative to the forecast loss."""
    validation_share: float = 0.1
    """Share of videos in the holdout, the newest ones, for calibration and evaluation, 0 .. 0.5."""
    max_horizon_h: float = 168.0
    """Longest horizon that the model will forecast, hours."""
    max_age_h: float = 720.0
    """Oldest age of a training sample, hours."""
    cuts_per_video: int = 0
    """Cut points of an event-fed video; counters are cut at every snapshot. 0 means 16, or 64 if there are few videos."""
    labels_per_cut: int = 6
    """Labels of each sample: later observations that it learns from."""
    bank_videos: int = 60_000
    """Videos in the bank, the newest ones, and how many videos back a creator's record goes; search is exact up to about 20,000."""
    neighbours: int = 10
    """Neighbours that are fused into a forecast (K)."""
    fusion_samples: int = 400_000
    """Largest number of training samples in stage two."""
    batch_tokens: int = 6000
    """Tokens in a training batch, padding included."""
    d_model: int = 64
    """Width of the Mamba-Hawkes network."""
    n_layers: int = 2
    """Layers of the Mamba-Hawkes network."""
    precision: str = "auto"
    """Precision of the linear layers in training: float32, bfloat16 (the scan stays float32), or auto, which is bfloat16 on CUDA."""
    use_mhp: bool = True
    """False for an ablation: no Mamba-Hawkes state, no trajectory vectors, no likelihood."""
    use_trajectory: bool = True
    """False for an ablation: neighbours by content only."""
    use_retrieval: bool = True
    """False for an ablation: no neighbours."""
    use_content: bool = True
    """False for an ablation: no content vector, so neighbours by trajectory only."""
    use_cascade: bool = True
    """False for an ablation: forecasts of event-fed metrics do not start from the growth that a self-exciting cascade expects."""

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
        for name in ("refit", "use_mhp", "use_trajectory", "use_retrieval", "use_content", "use_cascade"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name}: {getattr(self, name)!r}; allowed: true, false")

    def suited_to(self, videos: int) -> TrainConfig:
        """These settings with the ones that depend on the number of ``videos`` filled in."""
        few = videos < self.few_videos
        return dataclasses.replace(
            self,
            fusion_epochs=self.fusion_epochs if self.fusion_epochs >= 0 else (4 if few else 12),
            weight_decay=self.weight_decay if self.weight_decay >= 0 else (0.3 if few else 0.02),
            head_dropout=self.head_dropout if self.head_dropout >= 0 else (0.5 if few else 0.15),
            cuts_per_video=self.cuts_per_video or (64 if few else 16),
        )

    def passes(self, batches: int, videos: int) -> int:
        """Passes of stage one, for ``batches`` batches a pass and a data set of ``videos`` videos."""
        minimum, steps, maximum = (2, 112, 30) if videos < self.few_videos else (3, 400, 9)
        return self.epochs or min(max(minimum, -(-steps // max(batches, 1))), maximum)

    @property
    def parts(self) -> Ablation:
        """The parts of the method that are trained."""
        return Ablation(
            self.use_mhp,
            self.use_trajectory,
            self.use_retrieval and self.fusion_epochs != 0,
            self.use_content,
            self.use_cascade,
        )

    @staticmethod
    def read(path: Path | None) -> TrainConfig:
        """The defaults, overridden by the TOML file at ``path``.

        Raises:
            DataError: the file cannot be read, or has an unknown setting or a value out of range.
        """
        if path is None:
            return TrainConfig()
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, tomllib.TOMLDecodeError) as error:
            raise DataError(f"{path}: {error}") from None
        names = {field.name for field in dataclasses.fields(TrainConfig)}
        if unknown := sorted(set(values) - names):
            raise DataError(f"{path}: {unknown[0]!r} is no setting; allowed: {', '.join(sorted(names))}")
        return TrainConfig(**values)
