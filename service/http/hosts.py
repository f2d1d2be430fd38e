"""Protects a service without API keys from requests that come from web pages of other sites.

A service without API keys listens on loopback, so every browser on the machine can reach the service. If a page of another site
sends a request, the request's Origin header names that site. A site can also make its own host name point to this machine (DNS
rebinding). In requests from that site's pages, the Host header then contains the site's host name.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from typing import Final
from urllib.parse import urlsplit

from service.problems import Forbidden

_REMEMBERED: Final = 1024


class Hosts:
    """Decides which requests are allowed.

    Allowed hosts: IP addresses, loopback names, names without a dot, and the names in ``allowed``.
    Allowed origins: loopback names and addresses, the names in ``allowed``, and the host that the request was sent to.
    """

    def __init__(self, allowed: Iterable[str] = ()) -> None:
        self._allowed = frozenset(name.lower().rstrip(".") for name in allowed)
        self._known: dict[tuple[bytes, bytes], bool] = {}

    def check(self, host: bytes, origin: bytes) -> None:
        """Raise Forbidden if the host is not allowed, or if a page of another site sent the request."""
        if not host and not origin:
            return
        allowed = self._known.get((host, origin))
        if allowed is None:
            if len(self._known) >= _REMEMBERED:
                self._known.clear()
            allowed = self._known[host, origin] = self._is_allowed(_name(host), origin)
        if not allowed:
            field, value = ("Origin", origin) if self._is_host(_name(host)) else ("Host", host)
            raise Forbidden(
                f"{field}: without API keys, the service answers only this machine's own pages and programs",
                field=field,
                value=value.decode("latin-1")[:100],
                allowed="localhost, an address, a name without dots, or a name in allowed_hosts",
            )

    def _is_allowed(self, host: str, origin: bytes) -> bool:
        if not self._is_host(host):
            return False
        if not origin:
            return True
        try:
            site = (urlsplit(origin.decode("latin-1")).hostname or "").rstrip(".")
        except ValueError:
            return False
        return bool(site) and (site == host or site in self._allowed or _is_loopback(site))

    def _is_host(self, name: str) -> bool:
        return not name or "." not in name or name in self._allowed or _is_loopback(name) or _address(name) is not None


def _name(host: bytes) -> str:
    """Return the name in a Host header, without the port."""
    text = host.decode("latin-1").strip().lower()
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.rpartition(":")[0].rstrip(".") if text.rpartition(":")[2].isdecimal() else text.rstrip(".")


def _is_loopback(name: str) -> bool:
    address = _address(name)
    return name == "localhost" or name.endswith(".localhost") or (address is not None and address.is_loopback)


def _address(name: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(name)
    except ValueError:
        return None
