"""Settings of the bank: its server, its deadline, and the admission of videos."""

from __future__ import annotations

from pydantic import AliasChoices, Field, SecretStr

from service.settings.group import SettingsGroup


class BankSettings(SettingsGroup):
    """Where the bank of past videos is, and how it grows."""

    qdrant_url: SecretStr | None = Field(None, validation_alias=AliasChoices("M3TR_QDRANT_URL", "QDRANT_URL"))
    """URL of the Qdrant server that holds the bank. If None, the bundle's own bank is used."""
    qdrant_api_key: SecretStr | None = Field(
        None, validation_alias=AliasChoices("M3TR_QDRANT_API_KEY", "QDRANT_API_KEY")
    )
    """API key for the Qdrant server."""
    bank_deadline_ms: int = Field(500, ge=1, le=60_000)
    """Time limit in milliseconds for one bank query. If the query takes longer, the forecast is made without neighbours."""
    bank_after_s: int = Field(86_400, ge=0, le=365 * 86_400)
    """Age in seconds at which a video is admitted to the bank. A video is admitted again each time its age has
    doubled. With 0, no video is admitted."""
    bank_videos: int = Field(100_000, ge=0, le=100_000_000)
    """Maximum number of videos in the bank. While the bank is full, no video is admitted."""
    bank_entries: float = Field(5, gt=0, le=1000)
    """Maximum number of videos admitted to the bank per second."""
