"""Settings of access control: API keys, allowed hosts and the audit log."""

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
    """Accepted API keys, separated by commas or white space. Each entry has the form ``scope:sha256``. The scope is ingest, predict or
    admin. The part ``sha256`` is the SHA-256 digest of the key in lower-case hexadecimal. If there are no keys, requests need no key,
    and the server can only bind a loopback address."""
    api_keys_file: Path | None = None
    """File with further ``api_keys``, one per line. A line that starts with # is a comment."""
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    """Further host names that requests may name in their Host or Origin header, separated by commas or white space. This setting
    only has an effect without ``api_keys``. Loopback names, IP addresses and names without a dot are always allowed. Any other name is
    refused, because it may belong to another site's page (DNS rebinding)."""
    audit: bool = True
    """Whether the audit log is written. The log has one line per request that may change something. Each line has the API key's
    name, the request id and what was done."""

    @field_validator("api_keys", "allowed_hosts", mode="before")
    @classmethod
    def _split_hosts_and_keys(cls, value: object) -> object:
        return split_list(value)

    @model_validator(mode="after")
    def _check_keys(self) -> Self:
        keys = self.keys()
        if self.api_keys_file is not None and len(keys) == len(self.api_keys):
            raise ValueError(
                f"api_keys_file: {self.api_keys_file} holds no key; without a key, every request would be allowed"
            )
        if not all(map(_KEY.fullmatch, keys)):
            raise ValueError("api_keys: each must be scope:sha256, with scope ingest, predict or admin")
        return self

    def keys(self) -> tuple[str, ...]:
        """Return all accepted keys, including the keys in the file."""
        if self.api_keys_file is None:
            return self.api_keys
        try:
            text = self.api_keys_file.read_text("utf-8-sig")
        except UnicodeDecodeError:
            raise ValueError(f"api_keys_file: {self.api_keys_file} is not UTF-8 text") from None
        lines = (line.strip() for line in text.splitlines())
        return self.api_keys + tuple(line for line in lines if line and not line.startswith("#"))
