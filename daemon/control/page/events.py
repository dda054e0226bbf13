"""Server-sent events: which parts of the page show something old. The browser then fetches those parts again.

    GET /events     event: status | history, data: a number that differs each time
                    event: beat, after a while without another

One look at the state a second serves all browsers, and none is taken while nobody listens.
"""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator

from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from starlette.concurrency import run_in_threadpool
from starlette.types import Receive, Scope, Send

from daemon.control.context import ControlContext
from daemon.control.errors import ApiError
from daemon.control.page.view import HEADERS
from daemon.status.collect import collect_status

LOOK_SECONDS = 1.0
"""Time between two looks at the state (seconds)."""
STREAM_SECONDS = 600.0
"""Longest stream (seconds); the browser opens another, so that none stays of a browser that is gone."""
BEAT_SECONDS = 15.0
"""A beat goes out after so long without an event (seconds): proxies keep the connection, pages know that it lives."""
MOST_STREAMS = 32
PARTS = ("status", "history")
NOISE: dict[str, bool | set[str]] = {"at": True, "buffer": {"disk_free_bytes"}}
"""Fields of the status that differ at each look, and that no view shows."""
STREAM_HEADERS = HEADERS | {"X-Accel-Buffering": "no"}
"""nginx passes each event on at once."""


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
        try:
            facts = self._facts()
        except Exception as error:  # noqa: BLE001  the views say it; a stream that breaks off comes back at once
            facts = dict.fromkeys(PARTS, repr(error))
        return {name: hashlib.sha256(ascii(text).encode()).hexdigest()[:16] for name, text in facts.items()}

    def _facts(self) -> dict[str, str]:
        status = collect_status(self._context.in_force.now)
        ended = [(item.round, item.result) for item in status.last_rounds]
        return {
            "status": status.model_dump_json(exclude=NOISE),
            "history": repr(
                (self._context.registry.history_size(), status.versions, status.serving, ended, status.suggested)
            ),
        }


class _Stream(StreamingResponse):
    """One of `streams`, until it ends in any way."""

    streams: set[object]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.streams.discard(self)


def create_events(context: ControlContext) -> APIRouter:
    """Return the route of the events."""
    router, changes = APIRouter(), Changes(context)
    streams: set[object] = set()

    @router.get("/events")
    async def events(request: Request) -> StreamingResponse:
        """Stream the names of parts that changed."""
        if len(streams) >= MOST_STREAMS:
            raise ApiError(503, "too_many_streams", f"{MOST_STREAMS} pages are open; close one, or reload this one")
        answer = _Stream(stream(request), media_type="text/event-stream", headers=STREAM_HEADERS)
        answer.streams = streams
        streams.add(answer)  # before it begins: many may be asked for at once
        return answer

    async def stream(request: Request) -> AsyncIterator[str]:
        known, ends = dict[str, str](), time.monotonic() + STREAM_SECONDS
        spoke = time.monotonic()
        yield "retry: 1000\n\n"
        while time.monotonic() < ends and not getattr(request.app.state, "stopping", False):
            found = await changes.now()
            changed = [(name, mark) for name, mark in found.items() if known.get(name) != mark]
            for name, mark in changed:
                yield f"event: {name}\ndata: {mark}\n\n"
            silent = not changed and time.monotonic() - spoke >= BEAT_SECONDS
            if silent:
                yield "event: beat\ndata: -\n\n"
            spoke = time.monotonic() if changed or silent else spoke
            known = found
            await asyncio.sleep(LOOK_SECONDS / 2)

    return router
