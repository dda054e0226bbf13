"""Server-sent events: which parts of the page show something old. The browser then fetches those parts again.

    GET /events     event: status | history, data: a number that differs each time

One look at the state a second serves all browsers, and none is taken while nobody listens.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool

from daemon.control.context import ControlContext
from daemon.control.errors import ApiError
from daemon.control.page.view import HEADERS
from daemon.status.collect import collect_status

LOOK_SECONDS = 1.0
"""Time between two looks at the state (seconds)."""
STREAM_SECONDS = 600.0
"""Longest stream (seconds); the browser opens another, so that none stays of a browser that is gone."""
BEAT_SECONDS = 15.0
"""A comment goes out after so long without an event (seconds), so that proxies keep the connection."""
MOST_STREAMS = 32


class Changes:
    """A fingerprint of each part of the state."""

    def __init__(self, context: ControlContext) -> None:
        self._context = context
        self._lock = asyncio.Lock()
        self._looked, self._found = -LOOK_SECONDS, dict[str, str]()

    async def now(self) -> dict[str, str]:
        """Return the fingerprints, at most `LOOK_SECONDS` old."""
        async with self._lock:
            if time.monotonic() - self._looked >= LOOK_SECONDS:
                self._found = await run_in_threadpool(self._look)
                self._looked = time.monotonic()
            return self._found

    def _look(self) -> dict[str, str]:
        status = collect_status(self._context.in_force.now)
        ended = [(item.round, item.result) for item in status.last_rounds]
        facts = {
            "status": status.model_dump_json(exclude={"at"}),
            "history": repr(
                (self._context.registry.history_size(), status.versions, status.serving, ended, status.suggested)
            ),
        }
        return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in facts.items()}


def create_events(context: ControlContext) -> APIRouter:
    """Return the route of the events."""
    router, changes = APIRouter(), Changes(context)
    streams: set[object] = set()

    @router.get("/events")
    async def events(request: Request) -> StreamingResponse:
        """Stream the names of parts that changed."""
        if len(streams) >= MOST_STREAMS:
            raise ApiError(503, "too_many_streams", f"{MOST_STREAMS} pages are open; close one, or reload this one")
        return StreamingResponse(stream(request), media_type="text/event-stream", headers=HEADERS)

    async def stream(request: Request) -> AsyncIterator[str]:
        mine, known, ends = object(), dict[str, str](), time.monotonic() + STREAM_SECONDS
        streams.add(mine)
        spoke = time.monotonic()
        try:
            yield "retry: 1000\n\n"
            while time.monotonic() < ends and not getattr(request.app.state, "stopping", False):
                found = await changes.now()
                changed = [(name, mark) for name, mark in found.items() if known.get(name) != mark]
                for name, mark in changed:
                    yield f"event: {name}\ndata: {mark}\n\n"
                if not changed and time.monotonic() - spoke >= BEAT_SECONDS:
                    yield ": still here\n\n"
                spoke = time.monotonic() if changed else spoke
                known = found
                await asyncio.sleep(LOOK_SECONDS / 2)
        finally:
            streams.discard(mine)

    return router
