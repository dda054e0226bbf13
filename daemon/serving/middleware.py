"""ASGI middleware of the inference plane: what every request passes, from outside: Instrument, Guard, Lifetime."""

import asyncio
import time
from collections.abc import Awaitable, Callable

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapters.tracing import spans
from daemon.net.token import carries_token
from daemon.serving.errors import ApiError
from daemon.serving.plane import InferencePlane
from daemon.serving.versions.slots import Resident
from storage.durable.digest import short

VERSION_HEADER = "X-Checkpoint-Version"
HASH_HEADER = "X-Checkpoint-Hash"
OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Paths that orchestrators and Prometheus request without a token; they reveal neither images nor classes."""


def version_headers(resident: Resident) -> dict[str, str]:
    """Return headers with the version of an answer: its number and the first 12 digits of its SHA-256."""
    return {VERSION_HEADER: str(resident.version), HASH_HEADER: short(resident.digest)}


class Instrument:
    """Counts and times every request; an answer that names no version gets the live one's.

    While the process stops, every answer also says that it is the last of its connection.
    """

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
        started, code, version = time.perf_counter(), 0, ""

        async def send_named(message: Message) -> None:
            nonlocal code, version
            if message["type"] == "http.response.start":
                code, headers = message["status"], MutableHeaders(scope=message)
                version = headers.get(VERSION_HEADER, "")  # of the model that answered
                self._add_headers(headers)
                spans.note(version=version or None)
            await send(message)

        try:
            await self._app(scope, receive, send_named)
        except Exception as error:
            if code:
                raise
            answer = await self._failed(Request(scope), error)
            await answer(scope, receive, send_named)
        finally:
            endpoint = getattr(scope.get("route"), "path", "unknown")
            self._plane.metrics.answered(endpoint, code or 500, version, time.perf_counter() - started)

    def _add_headers(self, headers: MutableHeaders) -> None:
        if self._plane.draining:
            headers["Connection"] = "close"
        live = self._plane.slots.live
        if live is not None and VERSION_HEADER not in headers:
            headers.update(version_headers(live))


class Guard:
    """Wraps the application, so new routes are protected without extra code; protects nothing without a token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; raise ApiError 401 unauthorized before its body is read."""
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._opens(Headers(scope=scope)):
            message = "send `Authorization: Bearer TOKEN`; see serving.token in the docs"
            raise ApiError(401, "unauthorized", message, headers={"WWW-Authenticate": "Bearer"})
        await self._app(scope, receive, send)

    def _opens(self, headers: Headers) -> bool:
        return self._token is None or carries_token(headers.get("authorization", ""), self._token)


class Lifetime:
    """Ends a request when its time is over (its body included) or its client disconnects; frees place and version.

    Otherwise a late body or answer would hold them, and impatient clients that retry would fill the queue with answers
    that nobody reads.
    """

    def __init__(self, app: ASGIApp, seconds: float) -> None:
        self._app = app
        self._seconds = seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; an answer that began when the time is over is cut off.

        Raises ApiError: 408 when its body is late, 503 when the answer is, 400 (counted) when its client left.
        """
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request = _Watched(receive, send)
        try:
            async with asyncio.timeout(self._seconds) as timer:
                await self._app(scope, request.receive, request.send)
        except TimeoutError as error:
            if request.answered or not timer.expired():
                raise
            raise self._late(request.reading) from error
        except asyncio.CancelledError as error:
            if not request.left:
                raise
            request.task.uncancel()
            message = "the client disconnected before its answer came"
            raise ApiError(400, "client_disconnected", message) from error
        finally:
            request.end()

    def _late(self, reading: bool) -> ApiError:
        limit = f"{self._seconds:g} s (serving.advanced.request_seconds)"
        if reading:
            return ApiError(408, "body_timeout", f"the body did not arrive within {limit}")
        return ApiError(503, "request_timeout", f"no answer within {limit}; the server is busy", retry_after=1)


class _Watched:
    """One request in progress; watches the connection from the end of the body to the beginning of the answer."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive = receive
        self._send = send
        self._watch: asyncio.Task[None] | None = None
        task = asyncio.current_task()
        assert task is not None
        self.task = task
        self.reading = self.answered = self.left = False

    async def receive(self) -> Message:
        """Return the next part of the body."""
        self.reading = True
        message = await self._receive()
        self.reading = False
        if message["type"] == "http.request" and not message.get("more_body", False) and self._watch is None:
            self._watch = asyncio.create_task(self._wait_for_departure())
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer."""
        self.answered = True
        await self._send(message)

    def end(self) -> None:
        """Stop watching."""
        if self._watch is not None:
            self._watch.cancel()

    async def _wait_for_departure(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        if not self.answered:  # servers also say so after a complete answer
            self.left = True
            self.task.cancel()
