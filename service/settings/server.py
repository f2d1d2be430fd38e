"""Settings of the HTTP server: its address, its connections, and how it stops."""

from __future__ import annotations

from pydantic import Field, field_validator

from service.settings.group import SettingsGroup


class ServerSettings(SettingsGroup):
    """Where the server listens, how many connections it accepts, and how it stops."""

    host: str = "127.0.0.1"
    """Address to bind. An address other than loopback requires ``api_keys``."""
    port: int = Field(8000, ge=0, le=65535)
    """TCP port. With 0, any free port is taken."""
    root_path: str = Field("", pattern=r"^(/[^/\s?#]+)*$")
    """Path prefix under which a proxy serves this service, such as /m3tr. Requests are accepted with and without the prefix."""
    max_connections: int = Field(4096, ge=8, le=1_000_000)
    """Maximum number of open connections. The maximum is lowered if the operating system does not let this process open
    enough files. At the limit, the connection that has been idle longest is closed to make room for a new one. If no connection
    is idle, the new connection gets 503."""
    max_header_bytes: int = Field(32 * 1024, ge=4096, le=2**20)
    """Maximum size of a request's head in bytes. The head is the request line and the headers. A longer head gets 431."""
    head_deadline_ms: int = Field(15_000, ge=100, le=600_000)
    """Time limit in milliseconds for receiving a request's head. For the first request, the time runs from the connection's start.
    For each later request, the time runs from the first byte of the head."""
    keep_alive_s: float = Field(75, ge=1, le=3600)
    """Time in seconds for which a connection stays open between two requests. This time should exceed the load
    balancer's idle timeout, which is usually 60 s."""
    write_deadline_ms: int = Field(30_000, ge=100, le=600_000)
    """Time limit in milliseconds for a client to read more of its response. If the client reads nothing in this time, its
    connection is closed."""
    drain_s: float = Field(1.0, ge=0, le=600)
    """Time in seconds for which a stopping service still answers requests but reports that it is not ready. This
    gives load balancers time to stop sending requests."""
    shutdown_s: int = Field(10, ge=0, le=600)
    """Time limit in seconds for the requests in flight to end. This time starts after ``drain_s`` has passed."""

    @field_validator("root_path", mode="before")
    @classmethod
    def _strip_slash(cls, value: object) -> object:
        return value.rstrip("/") if isinstance(value, str) else value
