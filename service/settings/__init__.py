"""The settings: one class per topic, and the class ``Settings`` that combines them all."""

from __future__ import annotations

from service.settings.access import AccessSettings
from service.settings.bank import BankSettings
from service.settings.bodies import BodySettings
from service.settings.forecasts import ForecastSettings
from service.settings.ingest import IngestSettings
from service.settings.load import LoadSettings
from service.settings.models import ModelSettings
from service.settings.quality import QualitySettings
from service.settings.rankings import RankingSettings
from service.settings.records import RecordSettings
from service.settings.server import ServerSettings
from service.settings.settings import Settings
from service.settings.store import StoreSettings
from service.settings.streams import StreamSettings

__all__ = [
    "AccessSettings",
    "BankSettings",
    "BodySettings",
    "ForecastSettings",
    "IngestSettings",
    "LoadSettings",
    "ModelSettings",
    "QualitySettings",
    "RankingSettings",
    "RecordSettings",
    "ServerSettings",
    "Settings",
    "StoreSettings",
    "StreamSettings",
]
