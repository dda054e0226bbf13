"""ASGI middleware: no request, its body included, takes longer than `serving.request_seconds`."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.serving.api.problems import problem_answer
from daemon.serving.errors import ApiError
from daemon.serving.metrics import ServingMetrics


class Deadline:
    """Wraps the application. What is cut off frees its place in the queue and its version, as cancelling does."""

    def __init__(self, app: ASGIApp, seconds: float, metrics: ServingMetrics) -> None:
        self._app = app
        self._seconds = seconds
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; 408 when its body is late, 503 when the answer is, an aborted connection when it began."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        reading = started = False

        async def receive_noted() -> Message:
            nonlocal reading
            reading = True
            message = await receive()
            reading = False
            return message

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        timer = asyncio.timeout(self._seconds)
        try:
            async with timer:
                await self._app(scope, receive_noted, send_noted)
        except TimeoutError:
            if started or not timer.expired():
                raise
            await problem_answer(scope["path"], self._error(reading), self._metrics)(scope, receive, send)

    def _error(self, reading: bool) -> ApiError:
        limit = f"{self._seconds:g} s (serving.request_seconds)"
        if reading:
            return ApiError(408, "body_timeout", f"the body did not arrive within {limit}")
        return ApiError(503, "request_timeout", f"no answer within {limit}; the server is busy", retry_after=1)
