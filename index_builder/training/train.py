"""`m3tr-build train`: from a data set, as known at a time, to a bundle with its bank."""

from __future__ import annotations

import hashlib
import os
import sys
from contextlib import closing, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray

from index_builder.bundles.fill_bank import bank_members, fill_bank
from index_builder.datasets.check import check_dataset
from index_builder.datasets.findings import Finding, console, report
from index_builder.datasets.growth_check import require_growth
from index_builder.datasets.load import load_dataset
from index_builder.datasets.observed import Observed
from index_builder.report import EXAMPLES, MODEL, VideoBootstrap, examples, holdout_evaluation, verdict, write_page
from index_builder.samples.network_inputs import encode_text
from index_builder.scoring.holdout import calibrate, holdout_scores, stopping_half
from index_builder.training.config import TrainConfig
from index_builder.training.distributed import join
from index_builder.training.duration_estimate import about, estimate_s
from index_builder.training.onnx_export import write_calibration, write_network, write_rates
from index_builder.training.plan import Plan
from index_builder.training.rate_spans import rates_of
from index_builder.training.staging import staging_folder, staging_path
from index_builder.training.support_range import support_of
from index_builder.training.training_run import NGRAM_BUCKETS, HoldoutForecasts, TrainedModel, TrainingRun, versions
from model.bank import EmbeddedBank, EmptyBank
from model.bundle import BANK, REPORT, Manifest, load_bundle, write_manifest
from model.content.text import ENCODER_ID
from model.engagement.bins import SECOND_US
from model.engagement.types import metric_types
from model.errors import DataError
from model.forecaster import Forecaster
from model.network import CONTENT_DIM, SENTENCE_DIM
from model.quantiles.calibration import Calibration
from model.quantiles.support import Support
from model.rates import Rates

_LEAST_VIDEOS: Final = 50


def train(
    data: Path,
    *,
    as_of_us: int,
    metric: str,
    out: Path,
    device: str = "auto",
    epochs: int | None = None,
    seed: int = 0,
    config: Path | None = None,
) -> str | None:
    """Train, calibrate, evaluate, write the bundle and fill its bank, using nothing later than ``as_of_us``.

    The newest videos are held back: half of them say when to stop, the other half are scored for the report, and all calibrate
    the intervals; see ``index_builder.training.training_run``. A training that was killed goes on from its last pass over the data
    when it is started again. Under torchrun all processes train, and the first one does the rest.

    What ``check`` finds in the data is printed first, to standard error, and about how long it will take.

    Returns:
        What came of it, in words for people; None on other processes than the first.

    Raises:
        DataError: the data set, metric, device or a setting cannot be used, or there is nothing to learn; nothing is written then.
    """
    settings = TrainConfig.read(config)
    if epochs is not None:
        settings = replace(settings, epochs=epochs)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise DataError(f"out: {str(out)!r} exists and is not empty; allowed: a new folder")
    target = _device(device)
    first_process = os.environ.get("RANK", "0") == "0"
    if first_process:
        _tell(check_dataset(data))
    dataset = load_dataset(data, before_us=as_of_us)
    if len(dataset.videos) < _LEAST_VIDEOS:
        raise DataError(f"{data}: {len(dataset.videos)} videos published by the as-of time; needed: {_LEAST_VIDEOS}")
    seen = Observed.of(dataset, metric)
    require_growth(seen)
    if first_process:
        took = about(estimate_s(seen, settings.suited_to(len(dataset.videos))))
        print(
            f"{len(dataset.videos):,} videos, {len(seen.totals):,} rows of {metric}: training takes {took}",
            file=sys.stderr,
        )
    with (
        join(target) as process_group,
        staging_folder(out) if process_group.is_first else nullcontext(staging_path(out)) as folder,
    ):
        plan = Plan(seen, settings.suited_to(len(dataset.videos)), as_of_us, process_group, seed)
        learner = TrainingRun(plan, _text(plan), staging_path(out))
        first, judged = learner.judged()
        model = learner.whole(first) if plan.few and plan.config.refit else first
        said = _write(plan, model, first, judged, folder) if process_group.is_first else None
    return (
        None
        if said is None
        else f"{out}: bundle of {metric}. On videos held back it is {said}\nnext: m3tr-serve --bundle {out}"
    )


def _tell(findings: list[Finding]) -> None:
    """Print what a training should not go on in silence with."""
    if grave := [finding for finding in findings if finding.severity != "info"]:
        report(grave, console(stderr=True))


def _device(name: str) -> str:
    if name not in {"auto", "cpu", "cuda"}:
        raise DataError(f"device: {name!r}; allowed: auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise DataError("device: 'cuda', but PyTorch finds no CUDA device; allowed here: auto, cpu")
    return "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"


def _write(plan: Plan, model: TrainedModel, first: TrainedModel, judged: HoldoutForecasts, folder: Path) -> str:
    """Calibrate and score by what the ``first`` model made of held-back videos, write the bundle of ``model`` and fill its bank.

    Scores are of videos that did not calibrate; the bundle's own calibration is by all. Returns the verdict in words.
    """
    config, held = plan.config, judged.held
    decides = stopping_half(plan.data, held.samples.video)
    without_scored = calibrate(held.take(decides).samples, judged.quantiles[decides])
    plain = judged.plain[~decides] if judged.plain is not None else None
    table = holdout_scores(held.take(~decides).samples, judged.quantiles[~decides], plain, without_scored)
    evaluation = {
        "window_from_us": plan.split_us,
        "window_to_us": plan.until_us,
        "log_likelihood_per_token": first.objective.held_log_likelihood(held.samples),
        **table,
    }
    manifest = Manifest(
        "",
        plan.schema,
        plan.shape,
        ENCODER_ID,
        model.weight,
        config.neighbours,
        NGRAM_BUCKETS,
        _training(plan, model, first, judged),
        evaluation,
        config.parts,
    )
    support = _support(plan, model, judged)
    calibration = calibrate(held.samples, judged.quantiles)
    with plan.step("write bundle", 4) as advance:
        write_network(model, config.neighbours, support, _no_rates(plan), folder)
        advance(2)
        write_calibration(calibration, folder)
        arms = {MODEL: judged.quantiles} | (
            {} if judged.plain is None else {f"{MODEL} without retrieval": judged.plain}
        )
        validated = holdout_evaluation(manifest, plan.data, first.objective.corpus.samples, held.samples, decides, arms)
        write_page(folder / REPORT, validated)
        advance()
        write_manifest(folder, manifest)
        advance()
    _fill(plan, model, folder)
    # Rates and examples are forecast by the finished bundle; with them it is sealed anew.
    with closing(Forecaster.load(folder, device="cpu")) as forecaster:
        if model is first:
            rates = _rates(plan, first, forecaster)
        else:
            own = _support(plan, first, judged)
            rates = _rates_of_first(plan, first, own, calibration, manifest, folder)
        write_rates(rates, folder)
        manifest = replace(manifest, evaluation=evaluation | {"rate_factor": list(rates.bounds)})
        with plan.step("report", EXAMPLES) as advance:
            shown = examples(forecaster, plan.seen, validated.queries, lambda n: advance(n))
            write_page(folder / REPORT, replace(validated, manifest=manifest, examples=shown))
    write_manifest(folder, manifest)
    found = verdict(validated, VideoBootstrap(validated.queries.video)) if len(validated.queries.video) else None
    return "not scored: too few videos were held back" if found is None else f"{found.sentence(validated)}."


def _support(plan: Plan, model: TrainedModel, judged: HoldoutForecasts) -> Support:
    """The range of what a model learned from and what was held back."""
    parts = [model.objective.corpus.samples, judged.held.samples]
    return support_of(plan.seen, parts, plan.max_horizon_us / SECOND_US)


def _fill(plan: Plan, model: TrainedModel, folder: Path, what: str = "fill bank") -> None:
    """Fill the bank of a bundle that is written but for its rates; ``what`` names the step."""
    limit = plan.config.bank_videos
    forecaster = Forecaster(load_bundle(folder), EmptyBank(), device="cpu")
    with (
        plan.step(what, len(bank_members(plan.seen, plan.as_of_us, limit))) as advance,
        EmbeddedBank.build(folder / BANK, CONTENT_DIM, plan.shape.d_model) as bank,
    ):
        fill_bank(
            bank,
            forecaster,
            plan.seen,
            plan.as_of_us,
            limit=limit,
            sentence=model.objective.corpus.content.sentence,
            advance=lambda n: advance(n),
        )


def _rates_of_first(
    plan: Plan, first: TrainedModel, support: Support, calibration: Calibration, manifest: Manifest, folder: Path
) -> Rates:
    """Rates by the model that has not learned from what was held back, served from a bundle for the time being."""
    with TemporaryDirectory(prefix="first-", dir=folder.parent) as place:
        bundle = Path(place)
        write_network(first, plan.config.neighbours, support, _no_rates(plan), bundle)
        write_calibration(calibration, bundle)
        (bundle / REPORT).touch()
        write_manifest(bundle, replace(manifest, content_weight=first.weight))
        _fill(plan, first, bundle, "fill bank for rates")
        with closing(Forecaster.load(bundle, device="cpu")) as forecaster:
            return _rates(plan, first, forecaster)


def _rates(plan: Plan, first: TrainedModel, forecaster: Forecaster) -> Rates:
    with plan.step("fit rates") as advance:
        return rates_of(
            forecaster,
            plan.seen,
            plan.split_us,
            plan.until_us,
            seed=plan.seed,
            sentence=first.objective.corpus.content.sentence,
            advance=lambda n: advance(n),
        )


def _no_rates(plan: Plan) -> Rates:
    types = plan.data.types
    return Rates.plain(len(types), metric_types(plan.seen.name, types))


def _text(plan: Plan) -> NDArray[np.float32]:
    """Sentence vectors of all videos; the first process makes them for all."""
    videos = plan.data.videos
    sentence = np.zeros((len(videos), SENTENCE_DIM), np.float32)
    with plan.step("read text", len(videos)) as advance:
        if plan.process_group.is_first:
            sentence = encode_text(videos, lambda n: advance(n))
    return plan.process_group.broadcast(sentence)


def _training(plan: Plan, model: TrainedModel, first: TrainedModel, judged: HoldoutForecasts) -> dict[str, Any]:
    return {
        "as_of_us": plan.as_of_us,
        "split_us": plan.split_us,
        "first_published_us": int(plan.data.published_us[0]),
        "videos": len(plan.data.videos),
        "samples": model.samples,
        "held_back": len(judged.held),
        "learned_all": model is not first,
        "data_fingerprint": _fingerprint(plan.seen),
        "seed": plan.seed,
        "device": plan.process_group.device.type,
        "processes": plan.process_group.size,
        "settings": asdict(plan.config),
        "versions": versions(),
        "passes": {name: {"held_back_pinball": b.losses, "best": b.epoch + 1} for name, b in first.passes.items()},
    }


def _fingerprint(seen: Observed) -> str:
    digest = hashlib.sha256()
    for array in (seen.data.published_us, seen.metric.time_us, seen.totals):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
