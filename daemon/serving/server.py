"""`mfmd serve`: bind, publish the address in `run/serve.json`, serve until a signal, finish what is in flight."""

import asyncio
import os
import socket
import time

import torch
import uvicorn

from adapters.tracing.spans import exported
from configs.settings import Settings
from daemon.net.http_protocol import ARRIVAL_MARGIN, bounded_http
from daemon.net.listening import SERVING_CONNECTIONS, Crowd, Listener, TlsFiles, allowed_connections, listen, tls_files
from daemon.net.token import serving_address
from daemon.runtime.logs import get_logger
from daemon.runtime.memory import collect_garbage
from daemon.runtime.run_record import current_record, publish_record
from daemon.runtime.signals import STOP, on_signals
from daemon.runtime.supervisor import REQUESTS_SECONDS
from daemon.serving.app import create_app
from daemon.serving.plane import InferencePlane
from daemon.serving.shadow import plane_name
from storage.layout import StateLayout
from storage.media.bounded import cancel_decodes

LAST_REQUESTS_SECONDS = 0.5
"""How long open connections still take a request at the end: its client may have sent it before it could know."""
LAST_DECODES_SECONDS = 3.0
"""How long an image may still be decoded in a child process at the end (seconds)."""
BACKLOG = 2048
"""Connections that may wait for the server."""
ACCEPTED_AT_ONCE = 128
"""Connections that asyncio accepts before it does anything else; uvicorn's backlog is this as well."""
LOADS_A_COLLECTION = 32
"""Loads whose garbage (some 100 kB each) is collected together: each collection holds all threads for 2 ms."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open (seconds): longer than the 60 s for which proxies keep theirs, or a request
would now and then meet the close of its connection and fail. uvicorn's default is 5."""

log = get_logger(__name__)


class PlaneServer(uvicorn.Server):
    """uvicorn for `plane`, HTTPS with `tls`; it stops when the plane can answer no request."""

    def __init__(self, plane: InferencePlane, tls: TlsFiles | None = None) -> None:
        """Raise ConfigError for an unusable token."""
        self._crowd = Crowd(allowed_connections(SERVING_CONNECTIONS), plane.metrics.excess)
        super().__init__(
            uvicorn.Config(
                create_app(plane),
                http=bounded_http(plane.settings.serving.advanced.request_seconds + ARRIVAL_MARGIN, self._crowd),
                ws="none",
                log_config=None,
                access_log=False,
                backlog=ACCEPTED_AT_ONCE,
                timeout_keep_alive=KEEP_ALIVE_SECONDS,
                timeout_graceful_shutdown=REQUESTS_SECONDS,
                ssl_certfile=tls.certificate if tls else None,
                ssl_keyfile=tls.key if tls else None,
            )
        )
        self._plane = plane
        self.broken: list[str] = []
        """Why it stopped by itself; empty unless it did."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, then publish the address in `run/serve.json`."""
        for listener in sockets or []:
            if isinstance(listener, Listener):
                listener.on_drop = self._crowd.count
        await super().startup(sockets)
        if self.started and sockets:
            sockets[0].listen(BACKLOG)
            host, port = sockets[0].getsockname()[:2]
            log.info("serving_listens", host=host, port=port, device=str(self._plane.device))
            try:
                publish_record(self._plane.layout, "serve", host, port, tls=self.config.is_ssl)
            except OSError as error:  # a machine that mounts the registry read-only serves without the file
                path = self._plane.layout.run_file("serve")
                log.warning("run_file_not_written", path=str(path), error=str(error))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no new connections, add `Connection: close` to every answer, then stop.

        uvicorn closes idle connections at once, without a notice. Under steady load a request on its way to such a
        connection fails with a reset. `middleware.py` adds the header.
        """
        self._plane.draining = True
        for server in self.servers:
            server.close()
        for listener in sockets or []:
            listener.close()
        asyncio.get_running_loop().call_later(LAST_DECODES_SECONDS, cancel_decodes)
        deadline = time.monotonic() + LAST_REQUESTS_SECONDS
        while self.server_state.connections and not self.force_exit and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        await super().shutdown(sockets)

    async def on_tick(self, counter: int) -> bool:
        """Return whether to stop; uvicorn asks ten times a second.

        If the batcher's thread has ended, the server stops and the supervisor starts a new process. If the follower's
        has ended, the current version keeps serving, because a new process may fail to load any. Garbage of loads is
        collected here, in a thread of full priority.
        """
        if self._plane.batcher.dead:
            self.broken, self._plane.draining = self._plane.dead, True
            return True
        if self._plane.swapper.garbage >= LOADS_A_COLLECTION:
            self._plane.swapper.garbage = 0
            collect_garbage()
        return await super().on_tick(counter)


def serve(settings: Settings) -> int:
    """Run the inference plane of `settings` until a signal; return 0 after a clean stop, 1 after a failure.

    Starts without any version and waits for one. Raises AddressInUse when the address cannot be bound, ConfigError for
    a public address without a token, and for a token, certificate or key that cannot be used.
    """
    tls = tls_files("serving", settings.serving.certificate, settings.serving.key)
    listener = listen(serving_address(settings.serving), BACKLOG)
    if settings.serving.threads:
        torch.set_num_threads(settings.serving.threads)
    # uvicorn stops cleanly on a signal and then raises it again, which would end the process with the signal's status
    with exported("serve"), listener, on_signals(lambda: None, *STOP):
        plane = InferencePlane(settings, plane_name(*listener.getsockname()[:2]), own_process=True)
        try:
            server = PlaneServer(plane, tls)
            server.run(sockets=[listener])
        finally:
            plane.stop()
            _remove_record(plane.layout)
    log.info("serving_stopped", problems=server.broken)
    return 1 if server.broken else 0


def _remove_record(layout: StateLayout) -> None:
    """Remove the file if it is ours; another server on this state directory may have replaced it."""
    record, path = current_record(layout, "serve"), layout.run_file("serve")
    try:
        if record is not None and record.pid == os.getpid():
            path.unlink()
    except OSError as error:
        log.debug("run_file_not_removed", path=str(path), error=str(error))
