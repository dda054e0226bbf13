"""ASGI middleware of both planes: HEAD is answered like GET, and what outlasts the stop is answered too."""

import asyncio

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.errors import ShuttingDown


class HeadRequests:
    """Wraps the application, outermost: HEAD is answered like GET, without the body (RFC 9110, section 9.3.2).

    Monitors send it. The server knows the method that was sent, and leaves the body out. The answer ends with the first
    part of the body, because a stream of events has no other end.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http" or scope["method"] != "HEAD":
            await self._app(scope, receive, send)
            return
        over = False

        async def head(message: Message) -> None:
            nonlocal over
            if not over:
                over = message["type"] == "http.response.body"
                await send({**message, "more_body": False} if over else message)

        await self._app({**scope, "method": "GET"}, receive, head)


class LastAnswers:
    """Answers 503 shutting_down to a request that uvicorn cancels, because its time to stop is over.

    uvicorn itself would answer 500 without a code, and log a traceback for each.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; nothing can be said any more once its answer began."""
        began = False

        async def noted(message: Message) -> None:
            nonlocal began
            began = True
            await send(message)

        try:
            await self._app(scope, receive, noted)
        except asyncio.CancelledError:
            if began or scope["type"] != "http":
                raise
            message = "the server is stopping and this request took too long; send it again"
            said = {"code": ShuttingDown.code, "message": message, "error": message}
            await JSONResponse(said, 503, headers={"Retry-After": "1"})(scope, receive, send)
