"""The address of Redis. ``REDIS_URL`` is parsed and checked at the start, so a mistake in the URL is reported at once, in one line.

    redis://[[user]:password@]host[:port][/db]                         one server
    rediss://...                                                       one server, over TLS
    unix://[[user]:password@]/path/of/the/socket[?db=0]                one server on this machine
    redis+sentinel://[[user]:password@]host[:port][,host[:port]...]/master[/db]   the current primary, found through Sentinels
    redis+cluster://[[user]:password@]host[:port][,host[:port]...]     a cluster, found through any of these nodes
    rediss+sentinel://, rediss+cluster://                              Sentinels or a cluster, over TLS

``user`` and ``password`` are for the Redis servers. The options ``?sentinel_username=`` and ``?sentinel_password=`` are for the
Sentinels. TLS options are ``?ssl_ca_certs=``, ``ssl_cert_reqs``, ``ssl_certfile``, ``ssl_keyfile`` and further options of redis-py.
The characters #, /, ?, @, : and % must be percent-encoded in a password. No error message shows any part of the URL.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass, field
from ssl import TLSVersion
from typing import Any, Final, Literal
from urllib.parse import parse_qsl, unquote

from redis.asyncio import Connection

Kind = Literal["server", "sentinel", "cluster"]

_SCHEMES: Final = (
    "redis://, rediss://, unix://, redis+sentinel://, rediss+sentinel://, redis+cluster:// and rediss+cluster://"
)
_ENCODE: Final = "in a password #, /, ?, @ and % must be percent-encoded (# as %23, / as %2F)"
_FORMS: Final[dict[str, tuple[Kind, bool]]] = {
    "redis": ("server", False),
    "rediss": ("server", True),
    "redis+sentinel": ("sentinel", False),
    "rediss+sentinel": ("sentinel", True),
    "redis+cluster": ("cluster", False),
    "rediss+cluster": ("cluster", True),
}
_HOST: Final = re.compile(r"\[(?P<v6>[0-9A-Fa-f:.%]+)\](?::(?P<v6port>\d+))?|(?P<host>[\w.-]*)(?::(?P<port>\d+))?")
_PORT: Final = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_CLIENT_OPTIONS: Final = frozenset(inspect.signature(Connection.__init__).parameters) | {
    "max_connections",
    "timeout",
    "socket_timeout",
    "socket_connect_timeout",
    "health_check_interval",
    "client_name",
    "retry_on_timeout",
    "protocol",
    "decode_responses",
    "socket_keepalive",
}
_TLS: Final = frozenset(
    {
        "ssl_ca_certs",
        "ssl_ca_data",
        "ssl_cert_reqs",
        "ssl_certfile",
        "ssl_check_hostname",
        "ssl_ciphers",
        "ssl_keyfile",
        "ssl_min_version",
    }
)
_VERSIONS: Final = {"tlsv1.2": TLSVersion.TLSv1_2, "tlsv1.3": TLSVersion.TLSv1_3}


class AddressError(ValueError):
    """``REDIS_URL`` is not valid. The message names the variable and says what is allowed. It shows no part of the value."""

    def __init__(self, text: str) -> None:
        super().__init__(f"REDIS_URL: {text}")
        self.text = text


@dataclass(frozen=True, slots=True)
class Address:
    """The parsed and checked ``REDIS_URL``.

    ``hosts``: (name, port) pairs of the server, of the Sentinels, or of some cluster nodes.
    ``ignored``: options of the URL that have no effect.
    """

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str | None = None
    """Path of a unix socket. It is used instead of ``hosts``."""
    master: str = ""
    """The name under which the Sentinels know the primary and its replicas."""
    db: int = 0
    tls: bool = False
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_username: str | None = None
    sentinel_password: str | None = field(default=None, repr=False)
    tls_options: dict[str, Any] = field(default_factory=dict, repr=False)
    ignored: tuple[str, ...] = ()

    def credentials(self) -> dict[str, Any]:
        """Return the login and TLS options that every connection to a Redis server needs."""
        login = {"username": self.username, "password": self.password}
        return {name: value for name, value in login.items() if value} | (self.tls_options if self.tls else {})


def parse_address(url: str) -> Address:
    """Parse and check a URL.

    Raises:
        AddressError: if the URL has none of the forms listed in this module.
    """
    if url != url.strip() or url[:1] in "\"'" or any(mark.isspace() or not mark.isprintable() for mark in url):
        raise AddressError("contains quotes or white space; give the URL without them")
    scheme, found, rest = url.partition("://")
    scheme = scheme.lower()
    if not found or (scheme != "unix" and scheme not in _FORMS):
        raise AddressError(f"must begin with one of {_SCHEMES}")
    if "#" in rest:
        raise AddressError(f"must not contain a #; {_ENCODE}")
    rest, _, query = rest.partition("?")
    if "@" in query:
        raise AddressError(f"the options after ? are not name=value; {_ENCODE}")
    options, ignored = _options(query, scheme)
    authority, slash, path = rest.partition("/")
    if "@" in path and scheme != "unix":
        raise AddressError(f"has an @ after a /; {_ENCODE}")
    user, _, hosts = authority.rpartition("@")
    name, _, password = user.partition(":")
    login: dict[str, Any] = {
        "username": options.pop("username", None) or unquote(name) or None,
        "password": options.pop("password", None) or unquote(password) or None,
        "ignored": ignored,
    }
    if scheme == "unix":
        if hosts or not path:
            raise AddressError("must give the absolute path of the socket, as in unix:///run/redis.sock")
        return Address("server", path=unquote(slash + path), db=_db(options.pop("db", "")), **login)
    kind, tls = _FORMS[scheme]
    parts = [unquote(part) for part in path.split("/")] if path else []
    if kind == "sentinel":
        if not parts or not parts[0]:
            raise AddressError("lacks the name of the master, as in redis+sentinel://host:26379/mymaster")
        login["master"] = parts.pop(0)
        login["sentinel_username"] = options.pop("sentinel_username", None)
        login["sentinel_password"] = options.pop("sentinel_password", None)
    if len(parts) > 1 and any(parts[1:]):
        raise AddressError(f"has too many parts after the host; {_ENCODE}")
    db = _db(options.pop("db", "") or (parts[0] if parts else ""))
    if kind == "cluster" and db:
        raise AddressError("a cluster has database 0 only")
    return Address(kind, hosts=_hosts(hosts, kind), db=db, tls=tls, tls_options=_tls_options(options, tls), **login)


def _options(query: str, scheme: str) -> tuple[dict[str, str], tuple[str, ...]]:
    try:
        given = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=bool(query)))
    except ValueError:
        raise AddressError(f"the options after ? are not name=value; {_ENCODE}") from None
    known = {"db", "username", "password"} | (_TLS if scheme.startswith("rediss") else set())
    if scheme.endswith("+sentinel"):
        known |= {"sentinel_username", "sentinel_password"}
    ignored = tuple(sorted(name for name in given if name not in known and name in _CLIENT_OPTIONS))
    if any(name not in known and name not in _CLIENT_OPTIONS for name in given):
        raise AddressError(f"has an unknown option; known are {', '.join(sorted(known))}")
    return {name: value for name, value in given.items() if name in known}, ignored


def _tls_options(given: dict[str, str], tls: bool) -> dict[str, Any]:
    if not tls:
        return {}
    options: dict[str, Any] = dict(given)
    if "ssl_check_hostname" in options:
        options["ssl_check_hostname"] = options["ssl_check_hostname"].lower() in ("true", "yes", "1")
    wanted = str(options.get("ssl_cert_reqs", "required")).lower().removeprefix("cert_")
    if wanted not in ("required", "optional", "none"):
        raise AddressError("ssl_cert_reqs must be required, optional or none")
    if "ssl_cert_reqs" in options:
        options["ssl_cert_reqs"] = wanted
    if "ssl_min_version" in options:
        version = _VERSIONS.get(str(options["ssl_min_version"]).lower())
        if version is None:
            raise AddressError("ssl_min_version must be TLSv1.2 or TLSv1.3")
        options["ssl_min_version"] = version
    if wanted == "none":
        options.setdefault("ssl_check_hostname", False)
    return options


def _hosts(text: str, kind: Kind) -> tuple[tuple[str, int], ...]:
    parts = text.split(",")
    if kind == "server" and len(parts) > 1:
        raise AddressError("names several hosts; use redis+sentinel:// or redis+cluster:// for that")
    found = []
    for part in parts:
        match = _HOST.fullmatch(part)
        if match is None:
            raise AddressError(f"the host is not name or name:port, or the port is not a number; {_ENCODE}")
        host = unquote(match["v6"] or match["host"] or ("localhost" if kind == "server" else ""))
        port = int(match["v6port"] or match["port"] or _PORT[kind])
        if not host or not 0 < port < 65536:
            raise AddressError("needs a host, and a port from 1 to 65535")
        found.append((host, port))
    return tuple(found)


def _db(text: str) -> int:
    if text and not (text.isascii() and text.isdigit() and len(text) < 6):
        raise AddressError(
            f"the text after the host must be the number of a database, as in redis://host:6379/0; {_ENCODE}"
        )
    return int(text or 0)
