"""ASGI middleware: requests other than health and metrics need the plane's token."""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.net.token import bearer_of, same_token
from daemon.serving.errors import ApiError

OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Paths that orchestrators and Prometheus request without a token; they reveal neither images nor classes."""
MESSAGE = "send `Authorization: Bearer TOKEN`; see serving.token in the docs"


class Guard:
    """Wraps the application, so new routes are protected without extra code; protects nothing without a token."""

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; raise ApiError 401 unauthorized before its body is read."""
        if scope["type"] == "http" and scope["path"] not in OPEN and not self._opens(Headers(scope=scope)):
            raise ApiError(401, "unauthorized", MESSAGE, headers={"WWW-Authenticate": "Bearer"})
        await self._app(scope, receive, send)

    def _opens(self, headers: Headers) -> bool:
        given = bearer_of(headers.get("authorization", ""))
        return self._token is None or (given is not None and same_token(given, self._token))
