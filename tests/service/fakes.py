"""A small deterministic fake of the model, for tests of the service alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.bank import EmptyBank
from model.errors import BankError
from model.features.attributes import BOOLEANS, Attribute
from model.forecast import Forecast, Neighbour, Request, ThresholdForecast

HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class FakeSchema:
    attributes: tuple[Attribute, ...] = (
        Attribute("hd", "boolean", BOOLEANS),
        Attribute("regions", "list", ("at", "de")),
    )


@dataclass(frozen=True)
class FakeManifest:
    version: str = "fa4e"
    metric: str = "total"
    metrics: tuple[str, ...] = ("total",)
    types: tuple[str, ...] = ("view", "like", "comment", "share")
    max_horizon_us: int = 720 * HOUR_US
    bins_version: int = 1
    schema: FakeSchema = field(default_factory=FakeSchema)
    training: dict[str, object] = field(default_factory=dict)
    evaluation: dict[str, object] = field(default_factory=dict)


class FakePool:
    """A state pool that keeps nothing."""

    capacity = 16
    used = hits = misses = evictions = 0

    def forget(self, video_id: str) -> None:
        pass


class FakeForecaster:
    """Its quantiles are multiples of a sum over all cells; ``fail`` lists parts that are down."""

    def __init__(self, metrics: tuple[str, ...] = ("total",)) -> None:
        self.manifest = FakeManifest(metric=metrics[0], metrics=metrics)
        self.bank_down = False
        self.batches: list[int] = []
        self.factors: object = None
        self.adapted: dict[str, Mapping[str, object]] = {}

    def new_pool(self, capacity: int) -> FakePool:
        return FakePool()

    def adapt(self, factors: object, by_client: Mapping[str, object] | None = None, metric: str | None = None) -> None:
        self.by_client = by_client or {}
        self.adapted[metric or self.manifest.metric] = self.by_client
        self.factors = self.by_client.get("", factors)

    def forecast(
        self,
        requests: Sequence[Request],
        *,
        pool: object = None,
        stage: Callable[[str, float], None] | None = None,
    ) -> list[Forecast]:
        self.batches.append(len(requests))
        if stage is not None:
            stage("head", 0.001)
        return [self._one(request) for request in requests]

    def forecast_metrics(self, requests: Sequence[Request], **how: Any) -> list[dict[str, Forecast]]:
        first = self.forecast(requests, **how)
        return [
            {
                made.metric: made,
                **{metric: self._one(replace(request, metrics=(metric,))) for metric in request.metrics[1:]},
            }
            for request, made in zip(requests, first, strict=True)
        ]

    def _one(self, request: Request) -> Forecast:
        if request.video.title == "poison":
            raise ValueError("a video that no model can take")
        counts = request.history.totals()
        metric = request.metrics[0] if request.metrics else self.manifest.metric
        value = float(sum(n for kind, n in counts.items() if metric in ("total", kind)))
        moment = sum(
            (int(b) + 1) * int(v)
            for series in request.history.series.values()
            for b, v in zip(series.bins, series.values, strict=True)
        )
        moment += sum((b + 1) * r for b, r in request.history.reach.items())
        growth = np.array([1 + h / HOUR_US for h in request.horizons_us])
        middle = value + growth * (1 + moment % 9973)
        low = 0.5 * (value + middle)
        return Forecast(
            now_us=request.now_us,
            metric=metric,
            value_now=value,
            counts=counts,
            horizons_us=request.horizons_us,
            quantiles=np.stack(
                [low - 1, low, (low + middle) / 2, middle, 1.5 * middle, 2 * middle, 3 * middle], axis=1
            ),
            mean=1.1 * middle,
            intensity={kind: float(n) for kind, n in counts.items()},
            neighbours=[]
            if self.bank_down
            else [Neighbour("old", 0.9, 0.8, None, {h: 2.0 for h in request.horizons_us})],
            cold_start=not counts,
            degraded=["bank"] if self.bank_down else [],
            state_age_s=(request.now_us - request.video.published_us) / 1e6,
            thresholds=[_passing(request, threshold, value, middle) for threshold in request.thresholds],
        )


def _passing(request: Request, threshold: float, value: float, middle: NDArray[np.float64]) -> ThresholdForecast:
    passed = value >= threshold
    probabilities = np.ones(len(middle)) if passed else np.clip(middle / (middle + threshold), 0.001, 0.999)
    return ThresholdForecast(threshold, probabilities, {0.5: request.now_us if passed else None, 0.9: None})


class FakeBank(EmptyBank):
    """An empty bank that can be down."""

    down = False

    def counts(self) -> dict[str, int]:
        if self.down:
            raise BankError("down")
        return super().counts()
