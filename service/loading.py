"""From settings to a model that is ready to answer."""

from __future__ import annotations

from model.bundle import load_bundle
from model.forecaster import Forecaster
from service.bank import WatchedBank
from service.deployment import Deployment
from service.metrics import Metrics
from service.settings import Settings


def load_model(settings: Settings, metrics: Metrics) -> Deployment:
    """The bundle, asking its bank through our metrics.

    Raises:
        BundleError: the bundle is damaged or of another format.
        BankError: its embedded bank cannot be opened. (A Qdrant server that is down does not stop the start.)
    """
    if settings.qdrant_url is None:
        forecaster = Forecaster.load(settings.bundle, device=settings.device)
    else:
        # Its client takes a second to import, and most services do without.
        from model.bank.server import ServerBank

        bundle = load_bundle(settings.bundle)
        remote = ServerBank(
            settings.qdrant_url.get_secret_value(),
            bundle.manifest.version[:16],
            int(bundle.weights["content_dim"][0]),
            bundle.manifest.shape.d_model,
            settings.bank_deadline_ms / 1000,
            settings.qdrant_api_key.get_secret_value() if settings.qdrant_api_key else None,
        )
        forecaster = Forecaster(bundle, remote, device=settings.device)
    bank = WatchedBank(forecaster.bank, metrics)
    forecaster.bank = bank
    return Deployment(forecaster, bank, forecaster.new_pool(settings.cache_videos))
