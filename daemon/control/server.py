"""The control API on a socket, TCP or Unix: bound early, so that a taken port is told at once; served from a thread."""

import socket
import threading

import uvicorn
from fastapi import FastAPI

from configs.serving import ControlSettings
from daemon.errors import DaemonError
from daemon.net.listening import listen
from daemon.net.tls import TlsFiles
from daemon.net.token import control_address

BACKLOG = 128
GRACE_SECONDS = 2
"""Longest wait for requests in flight at the end (seconds)."""
START_SECONDS = 10.0


def bind(settings: ControlSettings) -> socket.socket:
    """A listening socket. Raises AddressInUse, naming host and port, ConfigError for a public one without a token."""
    return listen(control_address(settings), BACKLOG)


class ControlServer:
    """uvicorn in a thread; signals stay with the main thread."""

    def __init__(self, app: FastAPI, listener: socket.socket, tls: TlsFiles | None = None) -> None:
        """HTTPS only with `tls`."""
        self._listener = listener
        config = uvicorn.Config(
            app,
            http="h11",
            log_config=None,
            access_log=False,
            lifespan="off",
            timeout_graceful_shutdown=GRACE_SECONDS,
            ssl_certfile=tls.certificate if tls else None,
            ssl_keyfile=tls.key if tls else None,
        )
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [listener]}, name="control", daemon=True
        )

    @property
    def address(self) -> tuple[str, int]:
        """Host and port it is bound to."""
        host, port = self._listener.getsockname()[:2]
        return str(host), int(port)

    @property
    def alive(self) -> bool:
        """Whether it serves."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Serve; returns once requests are answered. Raises DaemonError when it does not come up."""
        self._thread.start()
        deadline = threading.Event()
        for _ in range(int(START_SECONDS / 0.02)):
            if self._server.started:
                return
            if not self.alive:
                break
            deadline.wait(0.02)
        raise DaemonError("the control plane's HTTP server did not start; its log says why")

    def stop(self) -> None:
        """Finish what is in flight and close."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(GRACE_SECONDS + 1.0)
        self._listener.close()
