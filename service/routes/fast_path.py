"""The busiest routes, matched first and called without FastAPI's dependency machinery.

Their handlers take a request and give a response, so they use none of it, and it costs as much as the rest of a warm
answer. The same routes are registered with FastAPI too, for the schema.
"""

from __future__ import annotations

from typing import Final

from starlette.routing import Match, Route
from starlette.types import Scope

from service.routes import operations, predict, rows, videos


class _Direct(Route):
    """A route that tells the scope who it is, as FastAPI's do."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        """Match, and name the route in the scope."""
        match, child = super().matches(scope)
        child["route"] = self
        return match, child


DIRECT: Final = (
    _Direct("/videos/{video_id}/forecast", videos.get_forecast, methods=["GET"], include_in_schema=False),
    _Direct("/predict", predict.post_predict, methods=["POST"], include_in_schema=False),
    _Direct("/events", rows.post_events, methods=["POST"], include_in_schema=False),
    _Direct("/counters", rows.post_counters, methods=["POST"], include_in_schema=False),
    # Not busy, but anybody may call them, however often.
    _Direct("/health/ready", operations.ready, methods=["GET"], include_in_schema=False),
    _Direct("/health/live", operations.live, methods=["GET"], include_in_schema=False),
)
