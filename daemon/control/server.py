"""The control API on a socket, TCP or Unix: bound early, so that a port in use is reported at once.

It serves from a thread. The guard checks the token before it reads a body, and accepts no large body.
"""

import asyncio
import math
import socket
import threading
import time

import uvicorn
from fastapi import FastAPI
from prometheus_client import Counter
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from configs.serving import ControlSettings
from daemon.control.errors import API, ApiError, answer_of
from daemon.errors import DaemonError
from daemon.net.hosts import is_known
from daemon.net.http_protocol import ARRIVAL_MARGIN, bounded_http
from daemon.net.listening import CONTROL_CONNECTIONS, Crowd, Listener, TlsFiles, allowed_connections, listen
from daemon.net.token import carries_token, control_address

BACKLOG = 128
GRACE_SECONDS = 2
"""Longest wait for requests in flight at the end (seconds)."""
START_SECONDS = 10.0
STUCK_SECONDS = 60.0
"""A loop that does not move for so long is stuck (seconds); requests run beside it, in threads."""


def bind(settings: ControlSettings) -> Listener:
    """Return a listening socket. Raises AddressInUse, or ConfigError for a public address without a token."""
    return listen(control_address(settings), BACKLOG)


class _TickingServer(uvicorn.Server):
    last_tick = math.inf
    """When its loop last moved, ten times a second (monotonic, seconds)."""

    async def on_tick(self, counter: int) -> bool:
        self.last_tick = time.monotonic()
        return await super().on_tick(counter)


class ControlServer:
    """Runs uvicorn in a thread; the main thread handles signals."""

    def __init__(
        self, app: FastAPI, listener: socket.socket, tls: TlsFiles | None = None, excess: Counter | None = None
    ) -> None:
        """Set up; HTTPS only with `tls`. `excess` counts connections beyond the bound."""
        self._app, self._listener = app, listener
        crowd = Crowd(allowed_connections(CONTROL_CONNECTIONS), excess)
        if isinstance(listener, Listener):
            listener.on_drop = crowd.count
        config = uvicorn.Config(
            app,
            http=bounded_http(BODY_SECONDS + ARRIVAL_MARGIN, crowd),
            backlog=CONTROL_CONNECTIONS,
            ws="none",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        self._server = _TickingServer(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="control", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Return the host and port it is bound to."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def alive(self) -> bool:
        """Return whether it serves."""
        return self._thread.is_alive()

    @property
    def stuck(self) -> bool:
        """Return whether its loop has not moved for `STUCK_SECONDS`; False before its first move."""
        return time.monotonic() - self._server.last_tick > STUCK_SECONDS

    def start(self) -> None:
        """Start serving; return once it answers requests. Raises DaemonError if it does not start."""
        self._thread.start()
        until = time.monotonic() + START_SECONDS
        while self.alive and time.monotonic() < until:
            if self._server.started:
                return
            time.sleep(0.02)
        raise DaemonError("the control plane's HTTP server did not start; see its log")

    def stop(self) -> None:
        """Finish what is in flight and close."""
        self._app.state.stopping = True  # streams of events end, which would outlast the stop
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(GRACE_SECONDS + 1.0)
        self._listener.close()


LOOKING = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
MOST_BYTES = 1024 * 1024
"""Largest body (bytes): the names of some 10,000 refused files."""
UPLOAD = "/label/upload"
"""The one route that takes more: an archive of masks, which goes to the disk as it arrives."""
MOST_UPLOAD_BYTES = 64 * 1024 * 1024
BODY_SECONDS = 20.0
"""Longest time that a body takes to arrive (seconds)."""
FOREIGN_HOST = ApiError(
    421, "foreign_host", "this server does not go by the name of the request; list it in control.advanced.hosts"
)


class ControlGuard:
    """Wraps the application, so that every route is guarded."""

    def __init__(self, app: ASGIApp, token: str | None, hosts: frozenset[str] | None = None) -> None:
        """Set up; without `token` changes need none, without `hosts` every name is answered."""
        self._app = app
        self._token, self._hosts = token, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, or answer 401, 413 or 421 before its body is read."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        if self._hosts is not None and not is_known(Headers(scope=scope).get("host", ""), self._hosts):
            await answer_of(FOREIGN_HOST)(scope, receive, send)
            return
        if not self._may_pass(scope):
            error = ApiError(401, "unauthorized", "send `Authorization: Bearer TOKEN`; see control.token in the docs")
            await answer_of(error)(scope, receive, send)
            return
        most = MOST_UPLOAD_BYTES if scope["path"] == UPLOAD else MOST_BYTES
        if int(Headers(scope=scope).get("content-length", "0")) > most:
            await answer_of(_too_large(most))(scope, receive, send)
        else:
            await self._app(scope, _Body(receive, most).receive, send)

    def _may_pass(self, scope: Scope) -> bool:
        if self._token is None or scope["method"] in LOOKING or not scope["path"].startswith(API):
            return True
        return carries_token(Headers(scope=scope).get("authorization", ""), self._token)


def _too_large(most: int) -> ApiError:
    return ApiError(413, "body_too_large", f"the body is larger than {most} bytes; split it")


class _Body:
    """The body of one request, of at most `most` bytes, within `BODY_SECONDS`."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most, self._size, self._complete = receive, most, 0, False
        self._ends = time.monotonic() + BODY_SECONDS

    async def receive(self) -> Message:
        """Return the next part. Raises ApiError 413 body_too_large, 408 body_timeout, 400 client_disconnected."""
        if self._complete:
            return await self._receive()
        try:
            async with asyncio.timeout(self._ends - time.monotonic()):
                message = await self._receive()
        except TimeoutError as error:
            raise ApiError(408, "body_timeout", f"the body did not arrive within {BODY_SECONDS:g} s") from error
        if message["type"] == "http.disconnect":
            raise ApiError(400, "client_disconnected", "the client disconnected before its body arrived")
        self._size += len(message.get("body", b""))
        self._complete = not message.get("more_body", False)
        if self._size > self._most:
            raise _too_large(self._most)
        return message
