"""An ASGI layer that keeps video ids in paths percent-encoded."""

from __future__ import annotations

from starlette.types import ASGIApp, Receive, Scope, Send


class RawVideoPaths:
    """Routes paths below /videos/ without decoding them, so that an id may contain an encoded slash.

    Handlers decode the id. For example, ``a%2Fforecast`` is the video ``a/forecast``, but ``a/forecast`` is the forecast of the
    video ``a``.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        raw: bytes = scope.get("raw_path") or b""
        if scope["type"] == "http" and raw.startswith(b"/videos/"):
            scope["path"] = raw.decode("latin-1")
        await self._app(scope, receive, send)
