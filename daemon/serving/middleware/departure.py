"""ASGI middleware: who hangs up before the answer frees its place in the queue and its version at once.

Clients that lost patience and ask again would otherwise fill the queue with answers that nobody takes.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.serving.api.problems import problem_answer
from daemon.serving.errors import ApiError
from daemon.serving.metrics import ServingMetrics


class Departure:
    """Wraps the application; looks at the connection from the end of the body to the beginning of the answer."""

    def __init__(self, app: ASGIApp, metrics: ServingMetrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; it is cancelled, and counted as client_disconnected, when its client hangs up."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = left = False
        watches: list[asyncio.Task[None]] = []
        request = asyncio.current_task()
        assert request is not None

        async def watch() -> None:
            nonlocal left
            while (await receive())["type"] != "http.disconnect":
                pass
            if not started:  # servers also say so after a complete answer
                left = True
                request.cancel()

        async def receive_noted() -> Message:
            message = await receive()
            if message["type"] == "http.request" and not message.get("more_body", False) and not watches:
                watches.append(asyncio.create_task(watch()))
            return message

        async def send_noted(message: Message) -> None:
            nonlocal started
            started = True
            await send(message)

        try:
            await self._app(scope, receive_noted, send_noted)
        except asyncio.CancelledError:
            if not left:
                raise
            request.uncancel()
            error = ApiError(400, "client_disconnected", "the client left before its answer came")
            await problem_answer(scope["path"], error, self._metrics)(scope, receive, send)
        finally:
            for task in watches:
                task.cancel()
