"""ASGI middleware: HEAD is answered like GET, without the body (RFC 9110, section 9.3.2); monitors send it."""

from starlette.types import ASGIApp, Receive, Scope, Send


class HeadRequests:
    """Wraps the application, outermost. The server knows the method that was sent, and leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await self._app(scope, receive, send)
