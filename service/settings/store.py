"""Settings of the event store's server and connections."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import AliasChoices, Field, SecretStr, field_validator

from service.settings.group import SettingsGroup
from service.settings.redis_address import AddressError, parse_address


class StoreSettings(SettingsGroup):
    """Which Redis server holds the event store, and how it is called."""

    data_dir: Path = Path("m3tr-data")
    """Folder for the files of the embedded event store; only one running service can use a folder."""
    redis_url: SecretStr | None = Field(None, validation_alias=AliasChoices("M3TR_REDIS_URL", "REDIS_URL"))
    """Event store server: redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (see
    ``service.settings.redis_address``). None starts the embedded one."""
    store_safety: Literal["warn", "refuse"] = "warn"
    """What to do about an event store that may lose data (a maxmemory-policy that evicts, or no persistence): warn in the log, in
    readiness and in metrics; or refuse to start, and to be ready."""
    store_binary: Path | None = None
    """Server binary of the embedded store; None takes the one that comes with the package."""
    appendfsync: Literal["everysec", "always"] = "everysec"
    """When the embedded store syncs its log to disk: each second (a power cut loses up to a second), or before each answer."""
    store_deadline_ms: int = Field(2000, ge=10, le=60_000)
    """Deadline of one event store call, in milliseconds."""
    store_connections: int = Field(64, ge=1, le=10_000)
    """Limit of connections to the event store."""

    @field_validator("redis_url")
    @classmethod
    def _check_address(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                parse_address(value.get_secret_value())
            except AddressError as error:
                # The error of a setting names its variable already.
                raise ValueError(error.text) from None
        return value
