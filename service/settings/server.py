"""Settings of the HTTP server: address, connections, and the end of the process."""

from __future__ import annotations

from pydantic import Field, field_validator

from service.settings.group import SettingsGroup


class ServerSettings(SettingsGroup):
    """Where the server listens, how many connections it takes, and how it stops."""

    host: str = "127.0.0.1"
    """Address to bind. Any address but loopback needs ``api_keys``."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port; 0 takes a free one."""
    root_path: str = Field("", pattern=r"^(/[^/\s?#]+)*$")
    """Path prefix that a proxy serves this service under, such as /m3tr. Requests are accepted with and without it."""
    max_connections: int = Field(4096, ge=8, le=1_000_000)
    """Limit of open connections, lowered to what the limit on open files allows. Past it, the connection that has been silent
    longest is closed; if none is silent, the new one gets 503."""
    max_header_bytes: int = Field(32 * 1024, ge=4096, le=2**20)
    """Limit of a request's head, in bytes; a longer one gets 431."""
    head_deadline_ms: int = Field(15_000, ge=100, le=600_000)
    """Milliseconds in which a new connection must send the head of its first request, and in which a head must be complete once
    it has begun."""
    keep_alive_s: float = Field(75, ge=1, le=3600)
    """Seconds for which a connection stays open between two requests. Longer than load balancers keep theirs (mostly 60)."""
    write_deadline_ms: int = Field(30_000, ge=100, le=600_000)
    """Milliseconds in which a client must read some of its response; a connection whose client reads nothing is closed."""
    drain_s: float = Field(1.0, ge=0, le=600)
    """Seconds for which a stopping service is not ready but still answers, so that load balancers stop sending requests first."""
    shutdown_s: int = Field(10, ge=0, le=600)
    """Seconds after ``drain_s`` in which requests in flight must end."""

    @field_validator("root_path", mode="before")
    @classmethod
    def _strip_slash(cls, value: object) -> object:
        return value.rstrip("/") if isinstance(value, str) else value
