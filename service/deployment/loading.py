"""From settings to a model that is ready to answer."""

from __future__ import annotations

from pathlib import Path

from model.bank import Bank, EmbeddedBank
from model.bundle import BANK, Bundle, load_bundle
from model.content.text import SentenceEncoder
from model.forecaster import Forecaster
from service.deployment.circuit_breaker import BankCircuitBreaker
from service.deployment.deployment import Deployment
from service.metrics import Metrics
from service.settings import Settings


def load_model(
    settings: Settings, metrics: Metrics, folder: Path | None = None, encoder: SentenceEncoder | None = None
) -> Deployment:
    """A bundle, asking its bank through our metrics.

    Args:
        settings: which bank, which device, how many states.
        metrics: told about the bank's answers.
        folder: the bundle; None is the one of the settings.
        encoder: one that another model has loaded, to be shared.

    Raises:
        BundleError: the bundle is damaged or of another format.
        BankError: its embedded bank cannot be opened. (A Qdrant server that is down does not stop the start.)
    """
    bundle = load_bundle(folder or settings.bundle)
    asked = _bank(settings, bundle)
    try:
        asked.cache_searches(settings.cache_videos)
        bank = BankCircuitBreaker(asked, metrics)
        forecaster = Forecaster(bundle, bank, device=settings.device, encoder=encoder)
        return Deployment(forecaster, bank, forecaster.new_pool(settings.cache_videos))
    except BaseException:
        asked.close()
        raise


def _bank(settings: Settings, bundle: Bundle) -> Bank:
    dims = int(bundle.weights["content_dim"][0]), bundle.manifest.shape.d_model
    if settings.qdrant_url is None:
        return EmbeddedBank.open(bundle.path / BANK, *dims)
    # Its client takes a second to import, and most services do without.
    from model.bank.server import ServerBank

    return ServerBank(
        settings.qdrant_url.get_secret_value(),
        bundle.manifest.version[:16],
        *dims,
        settings.bank_deadline_ms / 1000,
        settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None,
    )
