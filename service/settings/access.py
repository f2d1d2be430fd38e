"""Settings of access: API keys, allowed hosts, the audit log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, field_validator, model_validator
from pydantic_settings import NoDecode

from service.settings.group import SettingsGroup, split_list

_KEY: Final = re.compile(r"(ingest|predict|admin):[0-9a-f]{64}")


class AccessSettings(SettingsGroup):
    """Who may call the service."""

    api_keys: Annotated[tuple[str, ...], NoDecode] = Field((), repr=False)
    """Accepted API keys as ``scope:sha256`` (scope: ingest, predict or admin; lower-case hex of the key's SHA-256), separated by
    commas or white space. Empty: requests need no key, and only loopback can be bound."""
    api_keys_file: Path | None = None
    """File with further ``api_keys``; a line that starts with # is a comment."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Without ``api_keys``: further host names that the service is called by, separated by commas or white space. Loopback names,
    IP addresses and names without a dot are always allowed; any other name may belong to a page of another site (DNS rebinding)."""
    audit: bool = True
    """Whether the log has a line for each request that may change something: key, request id, what was done."""

    @field_validator("api_keys", "allowed_hosts", mode="before")
    @classmethod
    def _split_hosts_and_keys(cls, value: object) -> object:
        return split_list(value)

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        keys = self.keys()
        if self.api_keys_file is not None and len(keys) == len(self.api_keys):
            raise ValueError(
                f"api_keys_file: {self.api_keys_file} holds no key; without one, everybody would be let in"
            )
        if not all(map(_KEY.fullmatch, keys)):
            raise ValueError("api_keys: each must be scope:sha256, with scope ingest, predict or admin")
        return self

    def keys(self) -> tuple[str, ...]:
        """All accepted keys, including those of the file."""
        if self.api_keys_file is None:
            return self.api_keys
        try:
            text = self.api_keys_file.read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"api_keys_file: {self.api_keys_file} is no text in UTF-8") from None
        lines = (line.strip() for line in text.splitlines())
        return self.api_keys + tuple(line for line in lines if line and not line.startswith("#"))
