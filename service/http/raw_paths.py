"""An ASGI layer that keeps ids in paths as they were sent."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RawVideoPaths:
    """Routes paths below /videos/ as they were sent, so that an id may hold an encoded slash.

    Handlers decode the id themselves: ``a%2Fforecast`` is a video, ``a/forecast`` is a video's forecast.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection."""
        raw: bytes = scope.get("raw_path") or b""
        if scope["type"] == "http" and raw.startswith(b"/videos/"):
            scope["path"] = raw.decode("latin-1")
        await self._app(scope, receive, send)
