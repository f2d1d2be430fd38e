"""All settings of one service process. Each setting is read from the environment variable ``M3TR_<NAME>``.

``Settings`` inherits from several groups, which define the fields with their units and ranges. Each component of the service
takes only the one or two groups that it needs. ``REDIS_URL``, ``QDRANT_URL`` and ``QDRANT_API_KEY`` are also read without the
prefix. An empty variable counts as not set. The service does not start if a value is unsafe or out of range. If a
Kubernetes Service has a name that begins with m3tr, Kubernetes also sets variables that begin with ``M3TR_``. Those variables are
ignored (see ``service.environment``).
"""

from __future__ import annotations

import ipaddress
import os
from typing import Self

from pydantic import model_validator
from pydantic_settings import BaseSettings, EnvSettingsSource, PydanticBaseSettingsSource, SettingsConfigDict

from service.environment import service_links
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
from service.settings.store import StoreSettings
from service.settings.streams import StreamSettings


def is_loopback(host: str) -> bool:
    """Return whether a server that binds ``host`` can only be reached from this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class Settings(
    BaseSettings,
    ModelSettings,
    ServerSettings,
    AccessSettings,
    StoreSettings,
    RecordSettings,
    BankSettings,
    BodySettings,
    IngestSettings,
    ForecastSettings,
    StreamSettings,
    RankingSettings,
    QualitySettings,
    LoadSettings,
):
    """All groups of settings together, and the rules that involve several groups."""

    model_config = SettingsConfigDict(
        env_prefix="M3TR_",
        env_ignore_empty=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        populate_by_name=True,
        hide_input_in_errors=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Return where values are read from: first the arguments, then the environment variables.

        Environment variables that an orchestrator sets for other purposes are left out.
        """
        assert isinstance(env_settings, EnvSettingsSource)
        links = frozenset(name.lower() for name in service_links(os.environ))
        env_settings.env_vars = {name: value for name, value in env_settings.env_vars.items() if name not in links}
        return init_settings, env_settings

    @model_validator(mode="after")
    def _check_together(self) -> Self:
        if not self.keys() and not is_loopback(self.host):
            raise ValueError(
                f"host: {self.host} can be reached from outside this machine; set api_keys, or bind 127.0.0.1"
            )
        if self.bundles is not None and not self.bundles.is_dir():
            raise ValueError(f"bundles: {self.bundles} is not a folder")
        if self.bank_deadline_ms > self.request_deadline_ms:
            raise ValueError("bank_deadline_ms: must not be longer than request_deadline_ms")
        return self
