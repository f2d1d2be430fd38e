"""Settings of training, each with its unit; a TOML file may set any of them."""

from __future__ import annotations

import dataclasses
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model.ablation import Ablation
from model.errors import DataError

PRECISIONS: Final = ("auto", "float32", "bfloat16")
_LEFT_TO_SIZE: Final = ("fusion_epochs", "weight_decay", "head_dropout")
"""Settings that follow the number of videos where they are -1; 0 means none of it."""


@dataclass(frozen=True, slots=True)
class TrainConfig:
    """How a bundle is trained."""

    epochs: int = 0
    """Passes over the training samples of the network without retrieval; 0 for 3, for 2 where the videos are few, and for up to 9 of
    few batches."""
    fusion_epochs: int = -1
    """Passes of the second stage, which learns to use neighbours; 0 leaves retrieval unused, -1 for 12, and for 4 where the videos
    are few."""
    patience: int = 5
    """Passes without a better held-back loss after which a stage ends, and goes back to its best pass; 0 makes every pass
    and keeps the last."""
    learning_rate: float = 2e-3
    """Peak of AdamW's rate; warmed up, then a cosine to 2 %."""
    weight_decay: float = -1.0
    """AdamW's decay of matrices, 0 .. 1; -1 for 0.02, and for 0.3 where the videos are few."""
    text_dropout: float = 0.4
    """Share of text features dropped in training, 0 .. 1."""
    head_dropout: float = -1.0
    """Share of the head's units dropped in training, 0 .. 0.95; -1 for 0.15, and for 0.5 where the videos are few."""
    few_videos: int = 20_000
    """A data set of fewer videos is learned with a small head, which cannot learn them by heart, and from more moments of each."""
    refit: bool = True
    """Where videos are few: in the end learn again from all of them, those held back included, for as many passes as were best."""
    likelihood_weight: float = 0.01
    """Weight of the Hawkes log-likelihood a token beside the forecast loss."""
    validation_share: float = 0.1
    """Share of videos, the newest ones, held back for calibration and evaluation, 0 .. 0.5."""
    max_horizon_h: float = 168.0
    """Longest horizon that can be asked for, hours."""
    max_age_h: float = 720.0
    """Oldest age at which training looks at a video, hours."""
    cuts_per_video: int = 0
    """Moments at which an event-fed video is looked at; counters are cut at every snapshot. 0 for 16, and for 64 where the videos
    are few."""
    labels_per_cut: int = 6
    """Later observations learned from at each moment."""
    bank_videos: int = 60_000
    """Videos in the bank, the newest ones, and how many a creator is looked back over; searched exactly up to about 20,000."""
    neighbours: int = 10
    """Neighbours fused into a forecast (K)."""
    fusion_samples: int = 400_000
    """Training samples of the second stage at most."""
    batch_tokens: int = 6000
    """Tokens in a training batch, padding included."""
    d_model: int = 64
    """Width of the Mamba-Hawkes network."""
    n_layers: int = 2
    """Its depth."""
    precision: str = "auto"
    """Of the linear parts in training: float32, bfloat16 (the scan stays float32), or auto, bfloat16 on CUDA."""
    use_mhp: bool = True
    """False, for an ablation: no Mamba-Hawkes state, no trajectory vectors, no likelihood."""
    use_trajectory: bool = True
    """False, for an ablation: neighbours by content alone."""
    use_retrieval: bool = True
    """False, for an ablation: no neighbours."""
    use_content: bool = True
    """False, for an ablation: no content vector, so neighbours by trajectory alone."""
    use_cascade: bool = True
    """False, for an ablation: forecasts of event-fed metrics do not start from what a self-exciting cascade expects."""

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
            if not fits or not (low <= value <= high or (name in _LEFT_TO_SIZE and value == -1)):
                allowed = f"a {'whole ' if whole else ''}number from {low} to {high}"
                raise DataError(f"{name}: {value!r}; allowed: {allowed}{', or -1' if name in _LEFT_TO_SIZE else ''}")
        if self.precision not in PRECISIONS:
            raise DataError(f"precision: {self.precision!r}; allowed: {', '.join(PRECISIONS)}")
        for name in ("refit", "use_mhp", "use_trajectory", "use_retrieval", "use_content", "use_cascade"):
            if not isinstance(getattr(self, name), bool):
                raise DataError(f"{name}: {getattr(self, name)!r}; allowed: true, false")

    def suited_to(self, videos: int) -> TrainConfig:
        """These settings with those that are left to the number of ``videos`` filled in."""
        few = videos < self.few_videos
        return dataclasses.replace(
            self,
            fusion_epochs=self.fusion_epochs if self.fusion_epochs >= 0 else (4 if few else 12),
            weight_decay=self.weight_decay if self.weight_decay >= 0 else (0.3 if few else 0.02),
            head_dropout=self.head_dropout if self.head_dropout >= 0 else (0.5 if few else 0.15),
            cuts_per_video=self.cuts_per_video or (64 if few else 16),
        )

    def passes(self, batches: int, videos: int) -> int:
        """Passes of the first stage over ``batches`` batches of so many ``videos``."""
        least, steps, most = (2, 112, 30) if videos < self.few_videos else (3, 400, 9)
        return self.epochs or min(max(least, -(-steps // max(batches, 1))), most)

    @property
    def parts(self) -> Ablation:
        """Which parts of the method are trained."""
        return Ablation(
            self.use_mhp,
            self.use_trajectory,
            self.use_retrieval and self.fusion_epochs != 0,
            self.use_content,
            self.use_cascade,
        )

    @staticmethod
    def read(path: Path | None) -> TrainConfig:
        """Defaults, overridden by the TOML file at ``path``.

        Raises:
            DataError: the file cannot be read, or has a setting that does not exist or is out of range.
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
