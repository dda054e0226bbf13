"""ASGI middleware: counts and times every request, and names the serving version on every answer.

While the process stops, every answer also says that it is the last of its connection.
"""

import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.serving.plane import InferencePlane
from daemon.serving.versions.slots import Resident

VERSION_HEADER = "X-Checkpoint-Version"
HASH_HEADER = "X-Checkpoint-Hash"


def version_headers(resident: Resident) -> dict[str, str]:
    """Return headers with the version of an answer: its number and the first 12 digits of its SHA-256."""
    return {VERSION_HEADER: str(resident.version), HASH_HEADER: resident.digest[:12]}


class Instrument:
    """Wraps the application; an answer that names no version gets the live one's."""

    def __init__(
        self, app: ASGIApp, plane: InferencePlane, failed: Callable[[Request, Exception], Awaitable[ASGIApp]]
    ) -> None:
        """Wrap the application; `failed` gives the answer to a request that raised before its answer began."""
        self._app = app
        self._plane = plane
        self._failed = failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on and record how it ended."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, code, begun = time.perf_counter(), 500, False

        async def send_named(message: Message) -> None:
            nonlocal code, begun
            begun = True
            if message["type"] == "http.response.start":
                code = message["status"]
                self._add_headers(MutableHeaders(scope=message))
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            if begun:
                raise
            answer = await self._failed(Request(scope), error)
            await answer(scope, receive, send_named)
        finally:
            endpoint = getattr(scope.get("route"), "path", "unknown")
            metrics = self._plane.metrics
            metrics.requests.labels(endpoint=endpoint, code=str(code)).inc()
            metrics.request_seconds.labels(endpoint=endpoint).observe(time.perf_counter() - started)

    def _add_headers(self, headers: MutableHeaders) -> None:
        if self._plane.draining:
            headers["Connection"] = "close"
        live = self._plane.slots.live
        if live is not None and VERSION_HEADER not in headers:
            headers.update(version_headers(live))
