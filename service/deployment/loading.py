"""Loads a bundle as a deployment."""

from __future__ import annotations

from pathlib import Path

from model.bank import Bank, EmbeddedBank
from model.bundle import BANK, Bundle, load_bundle
from model.content.text import SentenceEncoder
from model.forecaster import Forecaster
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.metrics import Metrics
from service.settings import BankSettings, ModelSettings


def load_model(
    models: ModelSettings,
    bank: BankSettings,
    metrics: Metrics,
    folder: Path | None = None,
    encoder: SentenceEncoder | None = None,
) -> Deployment:
    """Load a bundle, with a circuit breaker around its bank.

    Args:
        models: which device, how many states, and which bundle without ``folder``.
        bank: which bank.
        metrics: receives the bank's times and failures.
        folder: the bundle; None takes the one of the settings.
        encoder: the sentence encoder of a model in memory, to be shared.

    Raises:
        BundleError: the bundle is damaged or of another format.
        BankError: its embedded bank cannot be opened. A Qdrant server that is down is no error.
    """
    bundle = load_bundle(folder or models.bundle)
    opened = _open_bank(bank, bundle)
    try:
        opened.cache_searches(models.cache_videos)
        watched = BankCircuitBreaker(opened, metrics)
        forecaster = Forecaster(bundle, watched, device=models.device, encoder=encoder)
        return Deployment(forecaster, watched, forecaster.new_pool(models.cache_videos))
    except BaseException:
        opened.close()
        raise


def _open_bank(settings: BankSettings, bundle: Bundle) -> Bank:
    dims = int(bundle.weights["content_dim"][0]), bundle.manifest.shape.d_model
    if settings.qdrant_url is None:
        return EmbeddedBank.open(bundle.path / BANK, *dims)
    # Imported only if needed: its client takes a second to import.
    from model.bank.server import ServerBank

    return ServerBank(
        settings.qdrant_url.get_secret_value(),
        bundle.manifest.version[:16],
        *dims,
        settings.bank_deadline_ms / 1000,
        settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None,
    )
