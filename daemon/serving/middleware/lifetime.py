"""ASGI middleware: end a request when its time is over or its client disconnects, and free its place and version.

Otherwise a late body or answer would hold them, and impatient clients that retry would fill the queue with answers that
nobody reads.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.serving.errors import ApiError


class Lifetime:
    """Wraps the application, and cancels it. Limits the whole request, its body included."""

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
        timer = asyncio.timeout(self._seconds)
        try:
            async with timer:
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
