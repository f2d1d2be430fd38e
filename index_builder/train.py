"""`m3tr-build train`: from a data set, as known at a time, to a bundle with its bank."""

from __future__ import annotations

import hashlib
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.checkpoint import Checkpoints, run_key
from index_builder.config import TrainConfig
from index_builder.corpus import Corpus, content_inputs, encode_text, sequences
from index_builder.dataset import DataSet, load_dataset
from index_builder.export import write_calibration, write_network
from index_builder.fill import bank_members, fill
from index_builder.fit import FUSION_ROWS, Trainer
from index_builder.forward import Forward
from index_builder.heldback import calibrate, score_table, warm_pinball
from index_builder.parametric import STEPS, cascade_of
from index_builder.progress import progress
from index_builder.ranks import Ranks, join
from index_builder.recall import Recall
from index_builder.report import EXAMPLES, MODEL, examples, validation, write_page
from index_builder.samples import Observed, draw
from index_builder.stopping import Best
from index_builder.windows import Window, deciding
from index_builder.workplace import workplace, workplace_of
from model.bank import EdgeBank, NoBank
from model.bins import HOUR_US, SECOND_US
from model.bundle import BANK, REPORT, Manifest, load_bundle, write_manifest
from model.cascade import Cascade
from model.content.text import ENCODER_ID
from model.curves import Curves, curves, usual_pace
from model.errors import DataError
from model.forecaster import Forecaster
from model.mhp.pace import pace_before
from model.mhp.shape import MHPShape
from model.network import CONTENT_DIM, M3TR, SENTENCE_DIM
from model.schema import Schema
from model.tokens import n_features

_NGRAM_BUCKETS: Final = 1 << 15
_LEAST_VIDEOS: Final = 50
_LEAST_PER_NAME: Final = 20
"""A category or language seen less often is unknown to the model."""


def train(
    data: Path, *, as_of_us: int, metric: str, out: Path, device: str = "auto", epochs: int | None = None, seed: int = 0,
    config: Path | None = None,
) -> None:  # fmt: skip
    """Train, calibrate, evaluate, write the bundle and fill its bank, using nothing later than ``as_of_us``.

    The newest videos are held back: half of them say when to stop and calibrate the intervals, the other half are scored for
    the report. A training that was killed goes on from its last pass over the data when it is started again. Under torchrun all
    processes train, and the first one does the rest.

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
    seen = Observed.of(dataset, metric)
    with join(target) as ranks, workplace(out) if ranks.first else nullcontext(workplace_of(out)) as folder:
        job = _Job(seen, settings.suited_to(len(dataset.videos)), as_of_us, ranks, seed)
        trained = job.train(workplace_of(out))
        if ranks.first:
            job.write(trained, folder)


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise DataError(f"device: {name!r}; allowed: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device: 'cuda', but PyTorch finds no CUDA device; allowed here: auto, cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, slots=True)
class _Trained:
    """A trained model, what it makes of the ``held`` window (N, J, 3), with neighbours and ``plain``, and its passes."""

    forward: Forward
    held: Window
    quantiles: NDArray[np.float32]
    plain: NDArray[np.float32] | None
    weight: float
    centre: NDArray[np.float32]
    samples: int
    passes: dict[str, Best]


class _Job:
    """One training run."""

    def __init__(self, seen: Observed, config: TrainConfig, as_of_us: int, ranks: Ranks, seed: int) -> None:
        self.seen, self.config, self.as_of_us, self.ranks, self.seed = seen, config, as_of_us, ranks, seed
        self.data: DataSet = seen.data
        self.until_us = self.data.watched_until_us(as_of_us)
        published = self.data.published_us
        self.split_us = int(np.quantile(published, 1 - config.validation_share, method="lower"))
        span = self.until_us - int(published[0])
        self.max_horizon_us = int(min(config.max_horizon_h * HOUR_US, max(span // 2, HOUR_US)))
        self.max_age_us = int(config.max_age_h * HOUR_US)
        self.schema = Schema(
            self.data.types, seen.name, self.max_horizon_us, self.max_age_us,
            _names(v.category for v in self.data.videos), _names(v.language for v in self.data.videos),
        )  # fmt: skip
        self.pace = usual_pace(
            curves(seen.metric, seen.totals, self.data.published_us, self.split_us, continuous=seen.continuous)
        )
        self.shape = MHPShape(n_features(len(self.data.types)), len(self.data.types), config.d_model, config.n_layers)
        self.cascade: Cascade | None = None

    def train(self, checkpoints: Path) -> _Trained:
        """Both stages, on every process alike."""
        config = self.config
        known = curves(
            self.seen.metric, self.seen.totals, self.data.published_us, self.until_us, continuous=self.seen.continuous
        )
        known = replace(known, pace=self.pace)
        sentence = self._text()
        self.cascade = self._fitted_cascade()
        with self._step("draw samples", 3) as advance:
            fit = self._window(known, self.split_us, self.seed)
            advance()
            held = self._window(known, self.until_us, self.seed + 1)
            held = held.take(
                (held.samples.now_us > self.split_us) & (self.data.published_us[held.samples.video] > self.split_us)
            )
            advance()
            content = content_inputs(self.data.videos, self.schema, sentence)
            tokens = sequences(self.seen, self.until_us)
            corpus = Corpus(tokens, pace_before(tokens), fit.samples, fit.creator, content)
            advance()
        if not len(fit) or not len(held):
            raise DataError(
                "data: no video has both an observation and a later one on each side of the split; more data or a later --as-of is needed"
            )
        forward = Forward(
            self._network(), corpus, self.max_horizon_us / SECOND_US, self.ranks.device, config.batch_tokens
        )
        forward.fit_scales(fit)
        trainer = Trainer(
            forward, config, self.ranks, Checkpoints(checkpoints, self._key(corpus), self.ranks), self.seed
        )
        decides = deciding(self.data, held.samples.video)
        with self._step("train", trainer.n_batches() * trainer.passes()) as advance:
            first = trainer.stage_one(held.take(decides), lambda n, note: advance(n, note=note))
        if not config.parts.neighbours:
            with self._step("read states", 1) as advance:
                judged = forward.encode(held)
                advance()
            nowhere = np.zeros(self.shape.d_model, np.float32)
            return _Trained(
                forward,
                held,
                judged.quantiles,
                None,
                config.parts.fixed_weight or 0.0,
                nowhere,
                len(fit),
                {"forecast": first},
            )
        return self._fuse(trainer, known, fit, held, decides, first)

    def _fuse(
        self, trainer: Trainer, known: Curves, fit: Window, held: Window, decides: NDArray[np.bool_], first: Best
    ) -> _Trained:
        """Stage two: find neighbours with the vectors of stage one, and learn to use them."""
        config, forward = self.config, trainer.forward
        n_samples = len(fit)
        rng = np.random.default_rng(self.seed)
        warm = np.flatnonzero(fit.samples.now_us > np.quantile(fit.samples.now_us, 0.1))
        fit = fit.take(np.sort(rng.choice(warm, min(config.fusion_samples, len(warm)), replace=False)))
        with self._step("read states", 3) as advance:
            learned = forward.encode(fit)
            advance()
            judged = forward.encode(held)
            advance()
            recall = Recall.of(self.seen, known, forward, config, self.max_horizon_us, self.cascade)
            advance()
        with self._step("find neighbours", len(fit) + len(held)) as advance:
            candidates = recall.candidates(fit, learned, lambda n: advance(n))
            held_candidates = recall.candidates(held, judged, lambda n: advance(n))
        weight = self.ranks.agree(recall.best_weight(fit, candidates))
        learn, judge = recall.nearest(fit, candidates, weight), recall.nearest(held, held_candidates, weight)
        deciders, states, found = held.take(decides), judged.hidden[decides], judge.take(decides)
        with self._step("train fusion", config.fusion_epochs * -(-len(fit) // FUSION_ROWS)) as advance:
            second = trainer.stage_two(
                fit, learned.hidden, learn,
                lambda: warm_pinball(deciders.samples, forward.predict(deciders, states, found)),
                lambda n, note: advance(n, note=note),
            )  # fmt: skip
        return _Trained(
            forward, held, forward.predict(held, judged.hidden, judge), judged.quantiles, weight, recall.centre, n_samples,
            {"forecast": first, "fusion": second},
        )  # fmt: skip

    def write(self, trained: _Trained, folder: Path) -> None:
        """Calibrate, score, write the bundle and fill its bank."""
        config, held, forward = self.config, trained.held, trained.forward
        decides = deciding(self.data, held.samples.video)
        calibration = calibrate(held.take(decides).samples, trained.quantiles[decides])
        plain = trained.plain[~decides] if trained.plain is not None else None
        table = score_table(held.take(~decides).samples, trained.quantiles[~decides], plain, calibration)
        evaluation = {
            "window_from_us": self.split_us, "window_to_us": self.until_us,
            "log_likelihood_per_token": forward.held_log_likelihood(held.samples), **table,
        }  # fmt: skip
        with self._step("write bundle", 4) as advance:
            write_network(forward.net, trained.centre, self.pace, self.cascade, config.neighbours, folder)
            advance(2)
            write_calibration(calibration, folder)
            manifest = Manifest(
                "", self.schema, self.shape, ENCODER_ID, trained.weight, config.neighbours, _NGRAM_BUCKETS,
                self._training(trained), evaluation, config.parts,
            )  # fmt: skip
            arms = {MODEL: trained.quantiles} | (
                {} if trained.plain is None else {f"{MODEL} without retrieval": trained.plain}
            )
            report = validation(manifest, self.data, forward.corpus.samples, held.samples, decides, arms)
            write_page(folder / REPORT, report)
            advance()
            write_manifest(folder, manifest)
            advance()
        forecaster = Forecaster(load_bundle(folder), NoBank(), device="cpu")
        members, bank_videos = len(bank_members(self.seen, self.as_of_us, config.bank_videos)), config.bank_videos
        with (
            self._step("fill bank", members) as advance,
            EdgeBank.build(folder / BANK, CONTENT_DIM, self.shape.d_model) as bank,
        ):
            fill(
                bank, forecaster, self.seen, self.as_of_us, limit=bank_videos,
                sentence=forward.corpus.content.sentence, advance=lambda n: advance(n),
            )  # fmt: skip
        # Examples are forecast by the finished bundle; with them in its report it is sealed anew.
        with self._step("report", EXAMPLES) as advance, closing(Forecaster.load(folder, device="cpu")) as forecaster:
            shown = examples(forecaster, self.seen, report.queries, lambda n: advance(n))
            write_page(folder / REPORT, replace(report, examples=shown))
        write_manifest(folder, manifest)

    def _fitted_cascade(self) -> Cascade | None:
        """What events alone expect, fitted before the split; None for counters. The first process fits it for all."""
        if not (self.seen.continuous and self.config.parts.cascade):
            return None
        with self._step("fit cascade", STEPS) as advance:
            fitted = cascade_of(
                self.seen, self.split_us, self.max_age_us, self.max_horizon_us, seed=self.seed, advance=lambda n: advance(n)
            )  # fmt: skip
        if fitted is None:
            return None
        return replace(
            fitted, constants=self.ranks.share(fitted.constants), correction=self.ranks.share(fitted.correction)
        )

    def _text(self) -> NDArray[np.float32]:
        """Sentence vectors of all videos; the first process makes them for all."""
        sentence = np.zeros((len(self.data.videos), SENTENCE_DIM), np.float32)
        with self._step("read text", len(self.data.videos)) as advance:
            if self.ranks.first:
                sentence = encode_text(self.data.videos, lambda n: advance(n))
        return self.ranks.share(sentence)

    def _window(self, known: Curves, until_us: int, seed: int) -> Window:
        c = self.config
        samples = draw(
            self.seen, until_us=until_us, max_age_us=self.max_age_us, max_horizon_us=self.max_horizon_us,
            n_labels=c.labels_per_cut, cuts_per_video=c.cuts_per_video, seed=seed, cascade=self.cascade,
        )  # fmt: skip
        return Window.of(self.data, known, samples, self.max_horizon_us, c.bank_videos)

    def _network(self) -> M3TR:
        """The network before training, the same on every process; what is dropped out in training differs between them."""
        torch.manual_seed(self.seed)
        net = M3TR(
            self.shape, len(self.schema.categories), len(self.schema.languages), _NGRAM_BUCKETS,
            text_dropout=self.config.text_dropout, head_dropout=self.config.head_dropout, parts=self.config.parts,
            cascade=self.cascade is not None,
            small_head=len(self.data.videos) < self.config.few_videos,
        )  # fmt: skip
        if self.ranks.size > 1:
            torch.manual_seed(self.seed * self.ranks.size + self.ranks.rank)
        return net

    def _key(self, corpus: Corpus) -> str:
        """What tells this run from another: its settings, and all that it reads."""
        arrays = [
            getattr(part, field.name)
            for part in (corpus.tokens, corpus.samples, corpus.content) for field in fields(part)
        ]  # fmt: skip
        return run_key(
            asdict(self.config), self.seed, self.as_of_us, self.seen.name, str(self.ranks.device.type), self.ranks.size,
            _versions(), corpus.creator, *arrays,
        )  # fmt: skip

    def _training(self, trained: _Trained) -> dict[str, Any]:
        return {
            "as_of_us": self.as_of_us, "split_us": self.split_us, "first_published_us": int(self.data.published_us[0]),
            "videos": len(self.data.videos), "samples": trained.samples, "held_back": len(trained.held),
            "data_fingerprint": _fingerprint(self.seen), "seed": self.seed, "device": self.ranks.device.type,
            "processes": self.ranks.size, "settings": asdict(self.config), "versions": _versions(),
            "passes": {name: {"held_back_pinball": b.losses, "best": b.epoch + 1} for name, b in trained.passes.items()},
        }  # fmt: skip

    @contextmanager
    def _step(self, name: str, total: float | None = None) -> Iterator[Callable[..., None]]:
        """Shows the progress of a step, on the first process only."""
        if not self.ranks.first:
            yield lambda *_, **__: None
            return
        start = time.monotonic()
        with progress(name, total) as bar:
            yield bar.advance
            bar.advance(0, note=f"done in {time.monotonic() - start:.0f} s")


def _names(values: Iterator[str | None]) -> tuple[str, ...]:
    counted = Counter(value for value in values if value)
    return tuple(sorted(name for name, n in counted.items() if n >= _LEAST_PER_NAME))


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "numpy": np.__version__}


def _fingerprint(seen: Observed) -> str:
    digest = hashlib.sha256()
    for array in (seen.data.published_us, seen.metric.time_us, seen.totals):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
