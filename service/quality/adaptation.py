"""Keeps the intervals and quality metrics of the active model up to date with the shared adaptive state."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import structlog
from numpy.typing import NDArray
from prometheus_client.core import GaugeMetricFamily, Metric

from model.quantiles.adaptive import median_logs
from service.background import BackgroundTask
from service.deployment.deployment import Deployment
from service.problems import Unavailable
from service.quality.label_store import LabelStore, parse_adaptive
from service.quality.scores import ScoresOfModel, horizon_name
from service.settings import QualitySettings

log = structlog.get_logger(__name__)

EVERY_S: Final = 5.0
_SCORES: Final = {
    "labels": ("m3tr_quality_labels", "Number of forecasts scored in the last days"),
    "nmse": ("m3tr_quality_nmse_ratio", "Mean squared error of the mean, divided by the variance of log2 growth"),
    "mae": ("m3tr_quality_mae_log2", "Mean absolute error of the median, in doublings"),
    "coverage": ("m3tr_quality_coverage_ratio", "Fraction of outcomes between q0.1 and q0.9. The target is 0.80"),
    "pinball": ("m3tr_quality_pinball_log2", "Mean pinball loss of q0.1, q0.5 and q0.9, in doublings"),
    "width": ("m3tr_quality_width_log2", "Mean width of the interval, in doublings"),
}


class Adaptation(BackgroundTask):
    """Reads the shared adaptive state every few seconds. ``enabled`` says whether intervals adapt to the state."""

    def __init__(
        self,
        label_store: LabelStore,
        active: Callable[[], Deployment],
        settings: QualitySettings,
        clock: Callable[[], int],
        shadow: Callable[[], Deployment | None] = lambda: None,
    ) -> None:
        self.enabled = settings.adaptive
        self._label_store, self._active, self._shadow, self._clock = label_store, active, shadow, clock
        self._applied: dict[Deployment, dict[str, dict[str, str]]] = {}
        self._factors: dict[tuple[str, str], tuple[NDArray[np.float64] | None, dict[str, NDArray[np.float64]]]] = {}
        self._scores_by_model: dict[str, ScoresOfModel] = {}

    def factors(self, version: str, metric: str, client: str = "") -> NDArray[np.float64] | None:
        """Return the interval stretch that a model applies to a metric of a client's videos, or None if the model applies no stretch."""
        common, by_client = self._factors.get((version, metric), (None, {}))
        return by_client.get(client, common)

    async def refresh(self) -> None:
        """Apply the newest adaptive state to the active model and to the shadow model."""
        self._scores_by_model = await self._label_store.scores_by_model(self._clock())
        serving = [deployment for deployment in (self._active(), self._shadow()) if deployment is not None]
        self._applied = {deployment: self._applied[deployment] for deployment in serving if deployment in self._applied}
        for deployment in serving:
            await self.apply(deployment)

    async def apply(self, deployment: Deployment) -> None:
        """Apply the newest adaptive state to a model. ``apply`` is also called before the model's first forecast."""
        if not self.enabled:
            return
        stored = await self._label_store.adaptives(deployment.version, deployment.forecaster.manifest.metrics)
        applied = self._applied.setdefault(deployment, {})
        for metric, texts in stored.items():
            if applied.get(metric, {}) == texts:
                continue
            states = {client: parse_adaptive(text) for client, text in texts.items()}
            base = median_logs(list(states.values()))
            common = np.exp(base) if base.any() else None
            by_client = {client: state.over(base) for client, state in states.items()}
            deployment.forecaster.adapt(common, by_client, metric)
            self._factors[deployment.version, metric] = common, by_client
            applied[metric] = texts

    def readings(self) -> Sequence[Metric]:
        """Return scores by model, metric and horizon, for the newest models only."""
        labels = ["model_version", "metric", "horizon"]
        families = {name: GaugeMetricFamily(*text, labels=labels) for name, text in _SCORES.items()}
        for version, by_metric in self._scores_by_model.items():
            for metric, sums in by_metric.sorted(self._active().forecaster.manifest.metrics):
                for bucket in sums.horizon_buckets():
                    scores = sums.scores([cell for cell in sums.cells if cell[1] == bucket])
                    for name, family in families.items():
                        if scores[name] is not None:
                            family.add_metric([version, metric, horizon_name(bucket)], scores[name])
        return list(families.values())

    async def _run(self) -> None:
        while True:
            try:
                await self.refresh()
            except Unavailable:
                pass
            except Exception:
                log.exception("intervals could not adapt")
            await asyncio.sleep(EVERY_S)
