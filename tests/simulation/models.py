"""The models of a simulated world: two versions with different forecasts, fake or real."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from model.bank import EmptyBank
from model.bundle import load_bundle
from model.forecast import Forecast, Request
from model.forecaster import Forecaster
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.metrics import Metrics
from tests.service.fakes import FakeBank, FakeForecaster, FakeManifest, FakePool


class Models(Protocol):
    """Where deployments come from; ``versions`` are the two versions' names."""

    versions: tuple[str, str]

    def deploy(self, which: int, states: int, metrics: Metrics) -> Deployment:
        """A new deployment with an empty cache of ``states`` states."""

    def from_scratch(self, version: str, request: Request) -> Forecast:
        """A version's forecast without any cached state."""


class _Weighted(FakeForecaster):
    def __init__(self, version: str, weight: float) -> None:
        super().__init__()
        self.manifest = FakeManifest(version)
        self._weight = weight

    def _one(self, request: Request) -> Forecast:
        made = super()._one(request)
        return replace(made, quantiles=made.quantiles * self._weight, mean=made.mean * self._weight)


class _NoStates(FakePool):
    rollbacks = 0


class FakeModels:
    """Fake forecasts that depend on every cell and take no time."""

    def __init__(self) -> None:
        self._forecasters = (_Weighted("fa4e", 1.0), _Weighted("fa4e2", 3.0))
        self.versions = ("fa4e", "fa4e2")

    def deploy(self, which: int, states: int, metrics: Metrics) -> Deployment:
        pool: Any = _NoStates()
        forecaster: Any = self._forecasters[which]
        return Deployment(forecaster, BankCircuitBreaker(FakeBank(), metrics), pool)

    def from_scratch(self, version: str, request: Request) -> Forecast:
        return self._forecasters[self.versions.index(version)].forecast([request])[0]


class RealModels:
    """A real bundle, and the same with other weights; states are cached, evicted, rolled back and replayed."""

    def __init__(self, folder: Path) -> None:
        bundle = load_bundle(folder)
        rng = np.random.default_rng(1)
        other = replace(
            bundle,
            manifest=replace(bundle.manifest, version="0" * 64),
            weights={
                name: (w * rng.normal(1, 0.05, w.shape).astype(w.dtype) if name.startswith("mhp.blocks") else w)
                for name, w in bundle.weights.items()
            },
        )
        self._forecasters = tuple(Forecaster(each, EmptyBank(), device="cpu") for each in (bundle, other))
        self.versions = (bundle.manifest.version, other.manifest.version)

    def deploy(self, which: int, states: int, metrics: Metrics) -> Deployment:
        forecaster = self._forecasters[which]
        return Deployment(forecaster, BankCircuitBreaker(EmptyBank(), metrics), forecaster.new_pool(states))

    def from_scratch(self, version: str, request: Request) -> Forecast:
        return self._forecasters[self.versions.index(version)].forecast([request])[0]


def comparable(forecast: Forecast) -> tuple[Any, ...]:
    """All bits of a forecast, without the list of parts that were missing."""
    return (
        forecast.now_us,
        forecast.metric,
        forecast.value_now,
        sorted(forecast.counts.items()),
        forecast.horizons_us,
        forecast.quantiles.tobytes(),
        forecast.mean.tobytes(),
        sorted(forecast.intensity.items()),
        repr(forecast.neighbours),
        forecast.cold_start,
        forecast.state_age_s,
    )
