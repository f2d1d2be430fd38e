"""WS /events/stream: rows over one long connection."""

from __future__ import annotations

import asyncio
from typing import Final

from fastapi import APIRouter
from starlette.websockets import WebSocket

from service.context import Context
from service.http.responses import problem_response
from service.http.visit import Visit
from service.problems import Problem

router = APIRouter(tags=["rows"])

_LINGER_S: Final = 0.05


@router.websocket("/events/stream")
async def stream_events(socket: WebSocket) -> None:
    """Take frames of events or counters and acknowledge each; see ``service.ingest.websocket`` for what is said.

    Needs the scope ingest, by a header as everywhere, or where a browser cannot set one, by ``?api_key=``.
    """
    parts: Context = socket.app.state.context
    visit = Visit.of(socket)
    try:
        if parts.hosts is not None:
            parts.hosts.check(visit.host, visit.origin)
        parts.keys.check(socket, "ingest")
        parts.row_sockets.check_room(visit.client)
    except Problem as problem:
        await socket.send_denial_response(problem_response(problem, visit))
        # The server logs an error for a handler that returns before the connection is gone.
        await asyncio.sleep(_LINGER_S)
        return
    await socket.accept()
    await parts.row_sockets.serve(socket, visit)
