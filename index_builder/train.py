"""`m3tr-build train`: from a data set, as known at a time, to a bundle with its bank."""

from __future__ import annotations

import hashlib
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.config import TrainConfig
from index_builder.corpus import Corpus, content_inputs, creator_codes, creator_rows, sequences
from index_builder.dataset import DataSet, load_dataset
from index_builder.export import write_calibration, write_network
from index_builder.fill import bank_members, fill
from index_builder.fit import Trainer
from index_builder.metrics import score
from index_builder.progress import progress
from index_builder.report import write_report
from index_builder.retrieval import Memory, find, nearest_growth_error, neighbour_features, unit
from index_builder.samples import Observed, Samples, draw, read_samples
from model.bank import EdgeBank, NoBank
from model.bins import HOUR_US, SECOND_US
from model.bundle import BANK, Manifest, load_bundle, write_manifest
from model.calibration import Calibration
from model.content.text import ENCODER_ID
from model.curves import Curves, curves, trajectory_cuts, usable_from
from model.errors import DataError
from model.forecaster import Forecaster
from model.growth import age_bucket
from model.mhp.shape import MHPShape
from model.network import CONTENT_DIM, M3TR
from model.schema import Schema
from model.tokens import n_features

_NGRAM_BUCKETS = 1 << 15
_LEAST_VIDEOS = 50
_LEAST_PER_NAME = 20
"""A category or language seen less often is unknown to the model."""
_WEIGHTS = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True, slots=True)
class _Window:
    """Samples of one part of time, with creator features."""

    samples: Samples
    creator: NDArray[np.float32]


def train(
    data: Path, *, as_of_us: int, metric: str, out: Path, device: str = "auto", epochs: int | None = None, seed: int = 0,
    config: Path | None = None,
) -> None:  # fmt: skip
    """Train, calibrate, evaluate, write the bundle and fill its bank, using nothing later than ``as_of_us``.

    The newest videos are held back: half of them calibrate the intervals, the other half are scored for the report.

    Raises:
        DataError: the data set, metric, device or a setting cannot be used; nothing is written then.
    """
    settings = TrainConfig.read(config)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"out: {str(out)!r} exists and is not empty; allowed: a new folder")
    target = _device(device)
    dataset = load_dataset(data, before_us=as_of_us)
    if len(dataset.videos) < _LEAST_VIDEOS:
        raise DataError(f"{data}: {len(dataset.videos)} videos published by the as-of time; needed: {_LEAST_VIDEOS}")
    torch.manual_seed(seed)
    job = _Job(Observed.of(dataset, metric), settings, as_of_us, target, seed)
    out.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and moved at the end: a bundle is whole or absent.
    part = Path(mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        job.run(part)
        if out.exists():
            out.rmdir()
        part.rename(out)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise DataError(f"device: {name!r}; allowed: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device: 'cuda', but PyTorch finds no CUDA device; allowed here: auto, cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


@contextmanager
def _step(name: str, total: float | None = None) -> Iterator[Callable[..., None]]:
    start = time.monotonic()
    with progress(name, total) as bar:
        yield bar.advance
        bar.advance(0, note=f"done in {time.monotonic() - start:.0f} s")


class _Job:
    """One training run."""

    def __init__(self, seen: Observed, config: TrainConfig, as_of_us: int, device: str, seed: int) -> None:
        self.seen, self.config, self.as_of_us, self.device, self.seed = seen, config, as_of_us, device, seed
        self.data: DataSet = seen.data
        self.until_us = self.data.watched_until_us(as_of_us)
        published = self.data.published_us
        self.split_us = int(np.quantile(published, 1 - config.validation_share, method="lower"))
        oldest = int(published[0])
        span = self.until_us - oldest
        self.max_horizon_us = int(min(config.max_horizon_h * HOUR_US, max(span // 2, HOUR_US)))
        self.max_age_us = int(config.max_age_h * HOUR_US)
        self.schema = Schema(
            self.data.types, seen.name, self.max_horizon_us, self.max_age_us,
            _names(v.category for v in self.data.videos), _names(v.language for v in self.data.videos),
        )  # fmt: skip

    def run(self, folder: Path) -> None:
        config, data = self.config, self.data
        known = curves(
            self.seen.metric, self.seen.totals, data.published_us, self.until_us, continuous=self.seen.continuous
        )
        with _step("read text", len(data.videos)) as advance:
            content = content_inputs(data.videos, self.schema, lambda n: advance(n))
        with _step("draw samples", 3) as advance:
            fit = self._window(known, self.split_us, self.seed)
            advance()
            held = self._window(known, self.until_us, self.seed + 1)
            held = _take(
                held, (held.samples.now_us > self.split_us) & (data.published_us[held.samples.video] > self.split_us)
            )
            advance()
            corpus = Corpus(sequences(self.seen, self.until_us), fit.samples, fit.creator, content)
            advance()
        if not len(fit.samples.video) or not len(held.samples.video):
            raise DataError(
                "data: no video has both an observation and a later one on each side of the split; more data or a later --as-of is needed"
            )
        shape = MHPShape(n_features(len(data.types)), len(data.types), config.d_model, config.n_layers)
        net = M3TR(
            shape,
            len(self.schema.categories),
            len(self.schema.languages),
            _NGRAM_BUCKETS,
            text_dropout=config.text_dropout,
        )
        trainer = Trainer(net, corpus, config, self.max_horizon_us / SECOND_US, self.device, self.seed)
        with _step("train", trainer.n_batches() * config.epochs) as advance:
            trainer.stage_one(config.epochs, lambda n, note: advance(n, note=note))
        likelihood = trainer.log_likelihood(held.samples)
        weight, centre, quantiles, plain = self._retrieval(trainer, known, fit, held)
        calibrating = _half(data, held.samples.video)
        calibration = _calibrate(_take(held, calibrating).samples, quantiles[calibrating])
        evaluation = self._evaluate(
            _take(held, ~calibrating).samples, quantiles[~calibrating], plain[~calibrating], calibration
        )
        evaluation["log_likelihood_per_token"] = likelihood
        with _step("write bundle", 4) as advance:
            write_network(net, centre, config.neighbours, folder)
            advance(2)
            write_calibration(calibration, folder)
            manifest = Manifest(
                "",
                self.schema,
                shape,
                ENCODER_ID,
                weight,
                config.neighbours,
                _NGRAM_BUCKETS,
                self._training(fit, held),
                evaluation,
            )
            write_report(manifest, folder)
            advance()
            write_manifest(folder, manifest)
            advance()
        forecaster = Forecaster(load_bundle(folder), NoBank(), device="cpu")
        members = len(bank_members(self.seen, self.as_of_us, config.bank_videos))
        with _step("fill bank", members) as advance, EdgeBank.build(folder / BANK, CONTENT_DIM, shape.d_model) as bank:
            fill(
                bank,
                forecaster,
                self.seen,
                self.as_of_us,
                limit=config.bank_videos,
                sentence=content.sentence,
                advance=lambda n: advance(n),
            )

    def _window(self, known: Curves, until_us: int, seed: int) -> _Window:
        c = self.config
        samples = draw(
            self.seen, until_us=until_us, max_age_us=self.max_age_us, max_horizon_us=self.max_horizon_us,
            n_labels=c.labels_per_cut, cuts_per_video=c.cuts_per_video, seed=seed,
        )  # fmt: skip
        return self._with_creators(known, samples)

    def _with_creators(self, known: Curves, samples: Samples) -> _Window:
        creator = creator_rows(
            self.data.videos,
            self.data.published_us,
            known,
            samples.video,
            samples.now_us,
            self.max_horizon_us,
            self.config.bank_videos,
        )
        return _Window(samples, creator)

    def _retrieval(
        self, trainer: Trainer, known: Curves, fit: _Window, held: _Window
    ) -> tuple[float, NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """Train on neighbours. Returns w, the trajectory centre, and the held-back growth quantiles with and without neighbours."""
        config, published = self.config, self.data.published_us
        rng = np.random.default_rng(self.seed)
        warm = np.flatnonzero(fit.samples.now_us > np.quantile(fit.samples.now_us, 0.1))
        chosen = np.sort(rng.choice(warm, min(config.fusion_samples, len(warm)), replace=False))
        fit = _take(fit, chosen)
        with _step("read states", 3) as advance:
            learned = trainer.encode(fit.samples, fit.creator)
            advance()
            judged = trainer.encode(held.samples, held.creator)
            advance()
            video, bucket, age = trajectory_cuts(known)
            usable = usable_from(
                Curves(known.ages_us[video], known.values[video], known.lengths[video]), published[video], age
            )
            nothing = np.full((len(video), 1), np.nan)
            cuts = self._with_creators(
                known,
                read_samples(
                    self.seen,
                    video,
                    published[video] + age,
                    horizon_us=np.zeros((len(video), 1), np.int64),
                    value=nothing,
                ),
            )
            states = trainer.encode(cuts.samples, cuts.creator).hidden
            advance()
        centre = states.mean(0) if len(states) else np.zeros(trainer.net.mhp.shape.d_model, np.float32)
        with torch.no_grad():
            content = np.concatenate(
                [
                    trainer.content(part).cpu().numpy()
                    for part in np.array_split(np.arange(len(published)), max(1, len(published) // 2000))
                ]
            )
        content = unit(content)
        some = ~cuts.samples.cold
        memory = Memory(
            published, known, content, usable_from(known, published, known.ages_us[:, 0]), video[some], bucket[some], usable[some],
            unit(states[some] - centre),
        )  # fmt: skip
        unions = []
        with _step("find neighbours", len(fit.samples.video) + len(held.samples.video)) as advance:
            for window, hidden in ((fit, learned.hidden), (held, judged.hidden)):
                unions.append(find(
                    memory, window.samples, content, unit(hidden - centre), limit=config.neighbours,
                    bank_videos=config.bank_videos, report=lambda n: advance(n),
                ))  # fmt: skip
        creators = creator_codes(self.data.videos)

        def features(window: _Window, union: Any, weight: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
            return neighbour_features(
                memory,
                union,
                window.samples,
                creators,
                content_weight=weight,
                k=config.neighbours,
                max_horizon_us=self.max_horizon_us,
            )

        errors = [
            nearest_growth_error(*features(fit, unions[0], w), fit.samples, self.max_horizon_us / SECOND_US)
            for w in _WEIGHTS
        ]
        weight = _WEIGHTS[int(np.nanargmin(errors))] if np.isfinite(errors).any() else 0.5
        learn, judge = features(fit, unions[0], weight), features(held, unions[1], weight)
        steps = config.fusion_epochs * -(-len(fit.samples.video) // 512)
        with _step("train fusion", steps) as advance:
            trainer.stage_two(
                fit.samples,
                fit.creator,
                learned.hidden,
                *learn,
                config.fusion_epochs,
                lambda n, note: advance(n, note=note),
            )
        quantiles = trainer.predict(held.samples, held.creator, judged.hidden, *judge)
        return weight, centre, quantiles, judged.quantiles

    def _evaluate(
        self, samples: Samples, quantiles: NDArray[np.float32], plain: NDArray[np.float32], calibration: Calibration
    ) -> dict[str, Any]:
        stretched = _stretch(samples, quantiles, calibration)
        cells: dict[str, Any] = {}
        warm = np.broadcast_to(~samples.cold[:, None], samples.growth.shape)
        bucket = np.broadcast_to(
            age_bucket((samples.age_s * SECOND_US).astype(np.int64))[:, None], samples.growth.shape
        )
        known = np.isfinite(samples.growth)
        for name, rows in (
            [("pooled", known & warm), ("cold start", known & ~warm)]
            + [(f"age bucket {b}", known & warm & (bucket == b)) for b in np.unique(bucket).tolist()]
        ):  # fmt: skip
            if rows.sum() >= 30:
                y, q = samples.growth[rows], stretched[rows]
                cells[name] = asdict(score(y, q[:, 1], q[:, 0], q[:, 2]))
        rows = known & warm
        without = plain[rows].astype(np.float64)
        reference = (
            asdict(score(samples.growth[rows], without[:, 1], without[:, 0], without[:, 2])) if rows.sum() else {}
        )
        return {
            "window_from_us": self.split_us,
            "window_to_us": self.until_us,
            "cells": cells,
            "without_retrieval": reference,
        }

    def _training(self, fit: _Window, held: _Window) -> dict[str, Any]:
        return {
            "as_of_us": self.as_of_us, "split_us": self.split_us, "first_published_us": int(self.data.published_us[0]),
            "videos": len(self.data.videos), "samples": len(fit.samples.video), "held_back": len(held.samples.video),
            "data_fingerprint": _fingerprint(self.seen), "seed": self.seed, "device": self.device,
            "settings": asdict(self.config), "versions": {"torch": torch.__version__, "numpy": np.__version__},
        }  # fmt: skip


def _take(window: _Window, rows: NDArray[Any]) -> _Window:
    return _Window(window.samples.take(rows), window.creator[rows])


def _names(values: Iterator[str | None]) -> tuple[str, ...]:
    counted = Counter(value for value in values if value)
    return tuple(sorted(name for name, n in counted.items() if n >= _LEAST_PER_NAME))


def _half(data: DataSet, video: NDArray[np.int64]) -> NDArray[np.bool_]:
    """A stable half of the videos, by a hash of their ids."""
    chosen = {
        v: hashlib.sha256(data.videos[v].video_id.encode()).digest()[0] & 1 == 0 for v in np.unique(video).tolist()
    }
    return np.array([chosen[v] for v in video.tolist()], dtype=bool)


def _calibrate(samples: Samples, quantiles: NDArray[np.float32]) -> Calibration:
    known = np.isfinite(samples.growth)
    if not known.any():
        return Calibration.identity()
    age_s = np.broadcast_to(samples.age_s[:, None], known.shape)[known]
    cold = np.broadcast_to(samples.cold[:, None], known.shape)[known]
    return Calibration.fit(
        age_s, samples.horizon_s[known], cold, quantiles[known].astype(np.float64), samples.growth[known]
    )


def _stretch(samples: Samples, quantiles: NDArray[np.float32], calibration: Calibration) -> NDArray[np.float64]:
    return calibration.apply(samples.age_s, samples.horizon_s, samples.cold, quantiles.astype(np.float64))


def _fingerprint(seen: Observed) -> str:
    digest = hashlib.sha256()
    for array in (seen.data.published_us, seen.metric.time_us, seen.totals):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
