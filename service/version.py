"""Finds the version of the service."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """Return the version of the installed package."""
    try:
        return version("m3tr-online")
    except PackageNotFoundError:
        return "0+unknown"
