"""The version of the service."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """The installed package's version."""
    try:
        return version("m3tr-online")
    except PackageNotFoundError:
        return "0+unknown"
