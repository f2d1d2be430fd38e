"""Writes a finished bundle from trained models: files, bank, rates and report."""

from __future__ import annotations

import hashlib
import json
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
from index_builder.training.model_fit import NGRAM_BUCKETS, HoldoutForecasts, TrainedModel, versions
from index_builder.training.onnx_export import write_network, write_rates
from index_builder.training.plan import Plan
from index_builder.training.rate_spans import rates_of
from index_builder.training.support_range import support_of
from model.bank import EmbeddedBank, EmptyBank
from model.bundle import BANK, REPORT, Manifest, load_bundle, write_manifest
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
    """Writes the bundle of ``model``, the model to be served, into a folder.

    ``scored`` is the model that did not learn from the holdout, and ``forecasts`` are its forecasts of the holdout.
    The calibration, the rates and the scores come from ``scored`` and ``forecasts``. ``model`` is either ``scored``
    or a model refitted on all videos.
    """

    plan: Plan
    model: TrainedModel
    scored: TrainedModel
    forecasts: HoldoutForecasts

    def write(self, folder: Path) -> str:
        """Write all files and fill the bank. Return the verdict on the holdout in words.

        For the scores, one half of the holdout calibrates the intervals and the other half is scored. The bundle's
        own calibration uses the whole holdout.
        """
        plan, holdout = self.plan, self.forecasts.holdout
        manifest = self._manifest()
        calibration = calibrate(holdout.samples, self.forecasts.parts)
        with plan.step("write bundle", 4) as advance:
            write_network(self.model, plan.config.neighbours, self._support(self.model), self._no_rates(), folder)
            advance(2)
            write_calibration(calibration, folder)
            evaluation = self._evaluation(manifest)
            write_page(folder / REPORT, evaluation)
            advance()
            write_manifest(folder, manifest)
            advance()
        self._fill_bank(self.model, folder)
        # The finished bundle makes the forecasts for its rates and for the report's examples. Then the manifest is
        # written again, with the new digests of the files.
        with closing(Forecaster.load(folder, device="cpu")) as forecaster:
            same = self.model is self.scored
            rates = self._rates(forecaster) if same else self._rates_of_scored(manifest, calibration, folder)
            write_rates(rates, folder)
            manifest = replace(manifest, evaluation=manifest.evaluation | {"rate_factor": list(rates.bounds)})
            with plan.step("report", EXAMPLES) as advance:
                shown = examples(forecaster, plan.observed, evaluation.queries, lambda n: advance(n))
                write_page(folder / REPORT, replace(evaluation, manifest=manifest, examples=shown))
        write_manifest(folder, manifest)
        if not len(evaluation.queries.video):
            return "not scored: too few videos were held out"
        found = verdict(evaluation, VideoBootstrap(evaluation.queries.video))
        return "not scored: too few videos were held out" if found is None else f"{found.sentence(evaluation)}."

    def _manifest(self) -> Manifest:
        plan, forecasts = self.plan, self.forecasts
        stopping = stopping_half(plan.data, forecasts.holdout.samples.video)
        calibration = calibrate(forecasts.holdout.take(stopping).samples, forecasts.parts[stopping])
        plain = forecasts.plain[~stopping] if forecasts.plain is not None else None
        scored = forecasts.holdout.take(~stopping).samples
        evaluation = {
            "window_from_us": plan.split_us,
            "window_to_us": plan.until_us,
            "log_likelihood_per_token": self.scored.objective.mean_log_likelihood(forecasts.holdout.samples),
            **holdout_scores(scored, forecasts.parts[~stopping], plain, calibration),
        }
        return Manifest(
            "",
            plan.schema,
            plan.shape,
            ENCODER_ID,
            self.model.content_weight,
            plan.config.neighbours,
            NGRAM_BUCKETS,
            self._training(),
            evaluation,
            plan.config.parts,
        )

    def _training(self) -> dict[str, Any]:
        """Return the manifest's entries about training."""
        plan = self.plan
        return {
            "as_of_us": plan.as_of_us,
            "split_us": plan.split_us,
            "first_published_us": int(plan.data.published_us[0]),
            "videos": len(plan.data.videos),
            "samples": self.model.samples,
            "held_back": len(self.forecasts.holdout),
            "learned_all": self.model is not self.scored,
            "data_fingerprint": _fingerprint(plan.observed),
            "seed": plan.seed,
            "device": plan.process_group.device.type,
            "processes": plan.process_group.size,
            "settings": asdict(plan.config),
            "versions": versions(),
            "members": self._members(),
            "passes": {
                name: {"held_back_loss": stage.losses, "best": stage.epoch + 1}
                for name, stage in self.scored.stages.items()
            },
        }

    def _members(self) -> dict[str, list[float]]:
        """Return the weights of the ensemble's members in the mean and in the median."""
        trees, simple = self.model.trees, self.model.simple
        share = np.zeros(N_CENTRE) if trees is None else trees.weight.astype(np.float64)
        own = np.zeros(N_CENTRE) if simple is None else simple.weight.astype(np.float64)
        found = {"network": (1 - own) * (1 - share), "trees": (1 - own) * share, "simple": own}
        return {name: np.round(weights, 4).tolist() for name, weights in found.items()}

    def _evaluation(self, manifest: Manifest) -> Evaluation:
        """Return the evaluation for the report, without examples."""
        holdout, forecasts = self.forecasts.holdout, self.forecasts
        methods = {MODEL: forecasts.parts}
        if forecasts.plain is not None:
            methods[f"{MODEL} without retrieval"] = forecasts.plain
        fitted = self.scored.objective.corpus.samples
        stopping = stopping_half(self.plan.data, holdout.samples.video)
        return holdout_evaluation(manifest, self.plan.data, fitted, holdout.samples, stopping, methods)

    def _support(self, model: TrainedModel) -> Support:
        """Return the range that covers the samples that a model learned from and the holdout's samples."""
        parts = [model.objective.corpus.samples, self.forecasts.holdout.samples]
        return support_of(self.plan.observed, parts, self.plan.max_horizon_us / SECOND_US)

    def _fill_bank(self, model: TrainedModel, folder: Path, step: str = "fill bank") -> None:
        """Fill the bank of a bundle that has no rates yet. ``step`` is the displayed name of the step."""
        plan = self.plan
        members = bank_members(plan.observed, plan.as_of_us, plan.config.bank_videos)
        forecaster = Forecaster(load_bundle(folder), EmptyBank(), device="cpu")
        with (
            plan.step(step, len(members)) as advance,
            EmbeddedBank.build(folder / BANK, CONTENT_DIM, model.centre.shape[1]) as bank,
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

    def _rates_of_scored(self, manifest: Manifest, calibration: Calibration, folder: Path) -> Rates:
        """Compute rates with the model that did not learn from the holdout. This model is loaded from a temporary bundle."""
        with TemporaryDirectory(prefix="first-", dir=folder.parent) as name:
            bundle, scored = Path(name), self.scored
            write_network(scored, self.plan.config.neighbours, self._support(scored), self._no_rates(), bundle)
            write_calibration(calibration, bundle)
            (bundle / REPORT).touch()
            write_manifest(bundle, replace(manifest, content_weight=scored.content_weight))
            self._fill_bank(scored, bundle, "fill bank for rates")
            with closing(Forecaster.load(bundle, device="cpu")) as forecaster:
                return self._rates(forecaster)

    def _rates(self, forecaster: Forecaster) -> Rates:
        plan = self.plan
        with plan.step("fit rates") as advance:
            return rates_of(
                forecaster,
                plan.observed,
                plan.split_us,
                plan.until_us,
                seed=plan.seed,
                sentence=self.scored.objective.corpus.content.sentence,
                advance=lambda n: advance(n),
            )

    def _no_rates(self) -> Rates:
        types = self.plan.data.types
        return Rates.plain(len(types), metric_types(self.plan.observed.name, types))


def write_calibration(calibration: Calibration, folder: Path) -> None:
    """Write calibration.json."""
    (folder / "calibration.json").write_text(json.dumps(calibration.to_json(), indent=1) + "\n", encoding="utf-8")


def _fingerprint(observed: Observed) -> str:
    digest = hashlib.sha256()
    for array in (observed.data.published_us, observed.metric.time_us, observed.totals):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
