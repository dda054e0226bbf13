"""ASGI middleware of the control plane: the token is asked for before a body is read, and no body is large."""

from fastapi import HTTPException
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from daemon.control.errors import ApiError, api_answer
from daemon.net.token import bearer_of, same_token

LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
API = "/v1/"
"""Where the token stands in a header; the page's form carries it in its body, which the page itself bounds."""
MOST_BYTES = 4 * 1024 * 1024
"""Largest body (bytes): the names of some 40,000 refused files."""


class ControlGuard:
    """Wraps the application; new routes are behind it without doing anything for it."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        """Without `token` only the size of bodies is watched."""
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401; a body of more than `MOST_BYTES` is answered with 413, not read on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if not self._may_pass(scope):
            error = ApiError(401, "unauthorized", "send `Authorization: Bearer TOKEN`; see control.token in the docs")
            await api_answer(error)(scope, receive, send)
            return
        size = 0

        async def receive_bounded() -> Message:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > MOST_BYTES:
                raise HTTPException(413, f"the body is larger than {MOST_BYTES} bytes; send it in parts")
            return message

        await self._app(scope, receive_bounded, send)

    def _may_pass(self, scope: Scope) -> bool:
        if self._token is None or scope["method"] in LOOKING or not scope["path"].startswith(API):
            return True
        given = bearer_of(Headers(scope=scope).get("authorization", ""))
        return given is not None and same_token(given, self._token)
