"""Settings of the event store's server and connections."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator

from service.settings.group import SettingsGroup
from service.settings.redis_address import AddressError, parse_address


class StoreSettings(SettingsGroup):
    """Which Redis server holds the event store, and how the service connects to it."""

    data_dir: Path = Path("m3tr-data")
    """Folder for the files of the embedded event store. Only one running service can use a folder."""
    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("M3TR_REDIS_URL", "REDIS_URL"))
    """Address of the event store's server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (see
    ``service.settings.redis_address``). If None, the embedded server is started."""
    store_safety: Literal["warn", "refuse"] = "warn"
    """What to do if the event store may lose data. The store may lose data if its maxmemory-policy evicts keys, or if it has no
    persistence.
    ``warn``: warnings appear in the log, in the readiness response and in the metrics.
    ``refuse``: the service does not start. If the store becomes unsafe later, the service reports that it is not ready."""
    store_binary: Path | None = None
    """Path of the embedded store's server binary. If None, the binary in the package is used."""
    appendfsync: Literal["everysec", "always"] = "everysec"
    """When the embedded store syncs its log to disk.
    ``everysec``: once per second, so a power failure may lose the rows of the last second.
    ``always``: before each reply."""
    store_deadline_ms: int = Field(2000, ge=10, le=60_000)
    """Time limit in milliseconds for one call to the event store."""
    store_connections: int = Field(64, ge=1, le=10_000)
    """Maximum number of connections to the event store."""

    @field_validator("redis_url")
    @classmethod
    def _check_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parse_address(value.get_secret_value())
            except AddressError as error:
                # The error message of a setting already names its variable.
                raise ValueError(error.text) from None
        return value
