"""Defines a deployment: a model version that is ready to forecast."""

from __future__ import annotations

from dataclasses import dataclass

from model.forecaster import Forecaster
from model.mhp.state_pool import StatePool
from service.deployment.circuit_breaker import BankCircuitBreaker


@dataclass(frozen=True, slots=True, eq=False)
class Deployment:
    """A bundle in memory: its forecaster, its bank, and its cached states."""

    forecaster: Forecaster
    bank: BankCircuitBreaker
    pool: StatePool

    @property
    def version(self) -> str:
        """The bundle's version, which is the hash of its manifest."""
        return self.forecaster.manifest.version

    def close(self) -> None:
        """Release the bank."""
        self.bank.close()
