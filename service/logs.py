"""Configures logging. Each event is one line on stderr, as JSON unless stderr is a terminal. Only the service's address goes to stdout."""

from __future__ import annotations

import sys

import structlog
from structlog.typing import EventDict

from service.http.visit import REQUEST_ID


def _with_request(logger: object, method: str, event: EventDict) -> EventDict:
    """Add the request's id to log lines that concern a request."""
    if (request_id := REQUEST_ID.get()) is not None:
        event.setdefault("request_id", request_id)
    return event


def configure_logs() -> None:
    """Configure structlog for the whole service."""
    terminal = sys.stderr.isatty()
    structlog.configure(
        processors=[
            _with_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if terminal else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if terminal else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
