"""ASGI middleware: requests other than health and metrics need the plane's token."""

from starlette.datastructures import Headers
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from daemon.net.token import bearer_of, same_token
from daemon.serving.metrics import ServingMetrics

OPEN = frozenset({"/healthz", "/readyz", "/metrics", "/v2/health/live", "/v2/health/ready"})
"""Paths that orchestrators and Prometheus request without a token; they reveal neither images nor classes."""
MESSAGE = "send `Authorization: Bearer TOKEN`; see serving.token in the docs"


class Guard:
    """Wraps the application, so new routes are protected without extra code."""

    def __init__(self, app: ASGIApp, token: str | None, metrics: ServingMetrics) -> None:
        """Protect nothing without a token."""
        self._app = app
        self._token = token
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401 before its body is read."""
        if scope["type"] != "http" or scope["path"] in OPEN or self._opens(Headers(scope=scope)):
            await self._app(scope, receive, send)
            return
        self._metrics.refused.labels(reason="unauthorized").inc()
        body = {"code": "unauthorized", "message": MESSAGE}
        if scope["path"].startswith("/v2"):
            body["error"] = MESSAGE  # the field that Open Inference Protocol clients read
        await JSONResponse(body, 401, headers={"WWW-Authenticate": "Bearer"})(scope, receive, send)

    def _opens(self, headers: Headers) -> bool:
        given = bearer_of(headers.get("authorization", ""))
        return self._token is None or (given is not None and same_token(given, self._token))
