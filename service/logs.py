"""Logs: one line an event on stderr, JSON unless a person is watching. Standard output carries the address only."""

from __future__ import annotations

import sys

import structlog
from structlog.typing import EventDict

from service.http.visit import REQUEST_ID


def _with_request(logger: object, method: str, event: EventDict) -> EventDict:
    """Say for which request a line is, where it is for one."""
    if (request_id := REQUEST_ID.get()) is not None:
        event.setdefault("request_id", request_id)
    return event


def configure_logs() -> None:
    """Set up structlog for the process."""
    watched = sys.stderr.isatty()
    structlog.configure(
        processors=[
            _with_request,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *([] if watched else [structlog.processors.format_exc_info]),
            structlog.dev.ConsoleRenderer() if watched else structlog.processors.JSONRenderer(),
        ],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
