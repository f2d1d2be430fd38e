"""WS /events/stream: receives rows over one long connection."""

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
    """Receive frames of events or counters, and acknowledge each frame. ``service.ingest.websocket`` describes the frames.

    The API key needs the scope ingest. The key is sent in a header, as for other routes, or as ``?api_key=``, because a browser cannot set
    headers.
    """
    context: Context = socket.app.state.context
    visit = Visit.of(socket)
    try:
        if context.hosts is not None:
            context.hosts.check(visit.host, visit.origin)
        context.keys.check(socket, "ingest")
        context.row_sockets.check_room(visit.client)
    except Problem as problem:
        await socket.send_denial_response(problem_response(problem, visit))
        # The server logs an error if a handler returns before the connection is closed.
        await asyncio.sleep(_LINGER_S)
        return
    await socket.accept()
    await context.row_sockets.serve(socket, visit)
