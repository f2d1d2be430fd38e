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
        models: settings for the device, the number of cached states, and the default bundle.
        bank: settings of the bank.
        metrics: receives the durations and failures of bank queries.
        folder: the bundle's folder, or None for the default bundle in ``models``.
        encoder: sentence encoder of a model in memory, to be shared. If None, the encoder is loaded from the bundle.

    Raises:
        BundleError: the bundle is damaged or has a different format.
        BankError: the embedded bank cannot be opened. A Qdrant server that is down is ignored.
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
    dims = bundle.dims
    if settings.qdrant_url is None:
        return EmbeddedBank.open(bundle.path / BANK, *dims)
    # Import ``ServerBank`` only if needed, because importing its Qdrant client takes a second.
    from model.bank.server import ServerBank

    return ServerBank(
        settings.qdrant_url.get_secret_value(),
        bundle.manifest.version[:16],
        *dims,
        settings.bank_deadline_ms / 1000,
        settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None,
    )
