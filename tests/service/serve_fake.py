"""``m3tr-serve`` with the fake model: quick to start, and equal in everything but the forecasts."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.server import serve
from service.settings import Settings
from service.wiring import new_metrics
from tests.service.fakes import FakeBank, FakeForecaster, FakePool


def main() -> None:
    settings = Settings(bundle=Path("unused"), bank_after_s=0)
    metrics = new_metrics(settings)
    serve(
        settings,
        metrics,
        Deployment(cast(Any, FakeForecaster()), BankCircuitBreaker(FakeBank(), metrics), cast(Any, FakePool())),
    )


if __name__ == "__main__":
    main()
