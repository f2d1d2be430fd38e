"""Writes a finished bundle from trained models: files, bank, rates and report."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from index_builder.bundles.fill_bank import bank_members, fill_bank
from index_builder.datasets.observed import Observed
from index_builder.evaluation.holdout_evaluation import holdout_evaluation
from index_builder.report import (
    EXAMPLES,
    MODEL,
    Evaluation,
    VideoBootstrap,
    examples,
    verdict,
    write_page,
)
from index_builder.scoring.calibrate import calibrate
from index_builder.scoring.holdout import holdout_scores, stopping_half
from index_builder.training.model_fit import TrainedModel, versions
from index_builder.training.onnx_export import write_metric, write_network, write_rates
from index_builder.training.plan import NGRAM_BUCKETS, Plan
from index_builder.training.rate_spans import rates_of
from index_builder.training.support_range import support_of
from index_builder.training.training_run import TrainedMetric
from model.bank import EmbeddedBank, EmptyBank
from model.bundle import BANK, CALIBRATION, REPORT, Manifest, load_bundle, metric_folder, write_manifest
from model.content.text import ENCODER_ID
from model.engagement.bins import SECOND_US
from model.engagement.types import metric_types
from model.forecaster import Forecaster
from model.network import CONTENT_DIM
from model.quantiles.calibration import Calibration
from model.quantiles.head import N_CENTRE
from model.quantiles.support import Support
from model.rates import Rates


@dataclass(frozen=True, slots=True)
class BundleWriter:
    """Writes the bundle of ``trained``, the models of all metrics, the first metric first.

    The calibration, the rates and the scores of a metric come from the model that did not learn from the holdout, and
    from its forecasts of the holdout.
    """

    plan: Plan
    trained: Sequence[TrainedMetric]

    @property
    def first(self) -> TrainedMetric:
        """The models of the first metric."""
        return self.trained[0]

    @property
    def further(self) -> Sequence[TrainedMetric]:
        """The models of the other metrics."""
        return self.trained[1:]

    def write(self, folder: Path) -> dict[str, str]:
        """Write all files and fill the bank. Return the verdict of each metric on the holdout in words.

        For the scores, one half of the holdout calibrates the intervals and the other half is scored. The bundle's
        own calibration uses the whole holdout.
        """
        plan = self.plan
        manifest = self._manifest()
        evaluations = {}
        with plan.step("write bundle", 3) as advance:
            self._write_models({each.name: each.model for each in self.trained}, folder)
            advance(2)
            for each in self.trained:
                evaluations[each.name] = self._evaluation(manifest.of(each.name), each)
                write_page(self._folder(folder, each.name) / REPORT, evaluations[each.name])
            write_manifest(folder, manifest)
            advance()
        self._fill_bank(self.first.model, folder)
        # The finished bundle makes the forecasts for its rates and for the report's examples. Then the manifest is
        # written again, with the new digests of the files.
        with closing(Forecaster.load(folder, device="cpu")) as forecaster:
            same = self.first.model is self.first.scored
            rates = self._rates(forecaster) if same else self._rates_of_scored(manifest, folder)
            for name, found in rates.items():
                write_rates(found, self._folder(folder, name))
            manifest = replace(manifest, evaluation=_with_rate_factors(manifest, rates))
            with plan.step("report", EXAMPLES * len(self.trained)) as advance:
                for each in self.trained:
                    evaluation = evaluations[each.name]
                    shown = examples(forecaster, each.observed, evaluation.queries, lambda n: advance(n))
                    finished = replace(evaluation, manifest=manifest.of(each.name), examples=shown)
                    write_page(self._folder(folder, each.name) / REPORT, finished)
        write_manifest(folder, manifest)
        return {name: _verdict(evaluation) for name, evaluation in evaluations.items()}

    def _folder(self, folder: Path, metric: str) -> Path:
        return folder if metric == self.first.name else folder / metric_folder(metric)

    def _write_models(self, models: Mapping[str, TrainedModel], folder: Path) -> None:
        """Write the networks, trees and calibrations of all metrics, without rates."""
        for each in self.trained:
            own, model = self._folder(folder, each.name), models[each.name]
            own.mkdir(parents=True, exist_ok=True)
            write = write_network if each is self.first else write_metric
            write(model, self.plan.config.neighbours, self._support(model, each), self._no_rates(each), own)
            write_calibration(calibrate(each.forecasts.holdout.samples, each.forecasts.parts), own)

    def _manifest(self) -> Manifest:
        plan, first = self.plan, self.first
        evaluation = {
            "window_from_us": plan.split_us,
            "window_to_us": plan.until_us,
            "log_likelihood_per_token": first.scored.objective.mean_log_likelihood(first.forecasts.holdout.samples),
            **self._scores(first),
        }
        if self.further:
            evaluation["further"] = {each.name: self._scores(each) for each in self.further}
        return Manifest(
            "",
            plan.schema,
            plan.shape,
            ENCODER_ID,
            first.model.content_weight,
            plan.config.neighbours,
            NGRAM_BUCKETS,
            self._training(),
            evaluation,
            plan.config.parts,
        )

    def _scores(self, of: TrainedMetric) -> dict[str, Any]:
        """Return the scores of a metric on the half of the holdout that did not decide when training stopped."""
        forecasts = of.forecasts
        stopping = stopping_half(self.plan.data, forecasts.holdout.samples.video)
        calibration = calibrate(forecasts.holdout.take(stopping).samples, forecasts.parts[stopping])
        plain = forecasts.plain[~stopping] if forecasts.plain is not None else None
        scored = forecasts.holdout.take(~stopping).samples
        return holdout_scores(scored, forecasts.parts[~stopping], plain, calibration)

    def _training(self) -> dict[str, Any]:
        """Return the manifest's entries about training."""
        plan, first = self.plan, self.first
        return {
            "as_of_us": plan.as_of_us,
            "split_us": plan.split_us,
            "first_published_us": int(plan.data.published_us[0]),
            "videos": len(plan.data.videos),
            "learned_all": first.model is not first.scored,
            "data_fingerprint": _fingerprint(plan.observed),
            "seed": plan.seed,
            "device": plan.process_group.device.type,
            "processes": plan.process_group.size,
            "settings": asdict(plan.config),
            "versions": versions(),
            **_trained(first),
            **({"further": {each.name: _trained(each) for each in self.further}} if self.further else {}),
        }

    def _evaluation(self, manifest: Manifest, of: TrainedMetric) -> Evaluation:
        """Return the evaluation of a metric for the report, without examples."""
        holdout, forecasts = of.forecasts.holdout, of.forecasts
        methods = {MODEL: forecasts.parts}
        if forecasts.plain is not None:
            methods[f"{MODEL} without retrieval"] = forecasts.plain
        fitted = of.scored.objective.corpus.samples
        stopping = stopping_half(self.plan.data, holdout.samples.video)
        return holdout_evaluation(manifest, self.plan.data, fitted, holdout.samples, stopping, methods)

    def _support(self, model: TrainedModel, of: TrainedMetric) -> Support:
        """Return the range that covers the samples that a model learned from and the holdout's samples."""
        parts = [model.objective.corpus.samples, of.forecasts.holdout.samples]
        return support_of(of.observed, parts, self.plan.max_horizon_us / SECOND_US)

    def _fill_bank(self, model: TrainedModel, folder: Path, step: str = "fill bank") -> None:
        """Fill the bank of a bundle that has no rates yet. ``step`` is the displayed name of the step."""
        plan = self.plan
        members = bank_members(plan.observed, plan.as_of_us, plan.config.bank_videos)
        forecaster = Forecaster(load_bundle(folder), EmptyBank(), device="cpu")
        with (
            plan.step(step, len(members)) as advance,
            EmbeddedBank.build(folder / BANK, CONTENT_DIM, model.space.dim) as bank,
        ):
            fill_bank(
                bank,
                forecaster,
                plan.observed,
                plan.as_of_us,
                members,
                sentence=model.objective.corpus.content.sentence,
                advance=lambda n: advance(n),
            )

    def _rates_of_scored(self, manifest: Manifest, folder: Path) -> dict[str, Rates]:
        """Compute rates with the models that did not learn from the holdout. They are loaded from a temporary bundle."""
        with TemporaryDirectory(prefix="first-", dir=folder.parent) as name:
            bundle, scored = Path(name), self.first.scored
            self._write_models({each.name: each.scored for each in self.trained}, bundle)
            for each in self.trained:
                (self._folder(bundle, each.name) / REPORT).touch()
            write_manifest(bundle, replace(manifest, content_weight=scored.content_weight))
            self._fill_bank(scored, bundle, "fill bank for rates")
            with closing(Forecaster.load(bundle, device="cpu")) as forecaster:
                return self._rates(forecaster)

    def _rates(self, forecaster: Forecaster) -> dict[str, Rates]:
        plan = self.plan
        with plan.step("fit rates") as advance:
            return rates_of(
                forecaster,
                plan.observed,
                plan.split_us,
                plan.until_us,
                seed=plan.seed,
                sentence=self.first.scored.objective.corpus.content.sentence,
                advance=lambda n: advance(n),
            )

    def _no_rates(self, of: TrainedMetric) -> Rates:
        types = self.plan.data.types
        return Rates.plain(len(types), metric_types(of.name, types))


def _trained(of: TrainedMetric) -> dict[str, Any]:
    """Return the manifest's entries about the training of one metric."""
    stages = of.scored.stages.items()
    return {
        "samples": of.model.samples,
        "held_back": len(of.forecasts.holdout),
        "members": _members(of.model),
        "passes": {name: {"held_back_loss": stage.losses, "best": stage.epoch + 1} for name, stage in stages},
    }


def _members(model: TrainedModel) -> dict[str, list[float]]:
    """Return the weights of the ensemble's members in the mean and in the median."""
    trees, simple = model.trees, model.simple
    share = np.zeros(N_CENTRE) if trees is None else trees.weight.astype(np.float64)
    own = np.zeros(N_CENTRE) if simple is None else simple.weight.astype(np.float64)
    found = {"network": (1 - own) * (1 - share), "trees": (1 - own) * share, "simple": own}
    return {name: np.round(weights, 4).tolist() for name, weights in found.items()}


def _with_rate_factors(manifest: Manifest, rates: Mapping[str, Rates]) -> dict[str, Any]:
    """Return the evaluation with the bounds of each metric's rates."""
    bounds = {name: {"rate_factor": list(found.bounds)} for name, found in rates.items()}
    evaluation = manifest.evaluation | bounds[manifest.metric]
    if "further" in evaluation:
        evaluation["further"] = {name: scores | bounds[name] for name, scores in evaluation["further"].items()}
    return evaluation


def _verdict(evaluation: Evaluation) -> str:
    if not len(evaluation.queries.video):
        return "not scored: too few videos were held out"
    found = verdict(evaluation, VideoBootstrap(evaluation.queries.video))
    return "not scored: too few videos were held out" if found is None else f"{found.sentence(evaluation)}."


def write_calibration(calibration: Calibration, folder: Path) -> None:
    """Write calibration.json."""
    (folder / CALIBRATION).write_text(json.dumps(calibration.to_json(), indent=1) + "\n", encoding="utf-8")


def _fingerprint(observed: Observed) -> str:
    digest = hashlib.sha256()
    for array in (observed.data.published_us, observed.metric.time_us, observed.totals):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
