"""HTTP over a Unix socket in the state directory, for commands of the user that runs the daemon."""

import http.client
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_ADDRESS = 100
"""Bytes of a path that every system takes as the address of a socket; Linux takes 107."""
BACKLOG = 128


@contextmanager
def listen_locally(path: Path) -> Iterator[socket.socket]:
    """Listen at `path`, in place of what is there; only the owner may connect. Raises OSError."""
    path.unlink(missing_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener, _socket_path(path) as address:
        listener.bind(address)
        try:
            path.chmod(0o600)  # nobody connects before `listen`
            listener.listen(BACKLOG)
            yield listener
        finally:
            path.unlink(missing_ok=True)


class LocalConnection(http.client.HTTPConnection):
    """HTTP to the server at a Unix socket."""

    def __init__(self, path: Path, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect. Raises OSError: there is no such socket, nobody listens, or it belongs to another user."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        with _socket_path(self._path) as address:
            self.sock.connect(address)


@contextmanager
def _socket_path(path: Path) -> Iterator[str]:
    """Return an address for the socket at `path`: of a long one a short way through an open folder (Linux)."""
    if len(os.fsencode(path)) <= LONGEST_ADDRESS:
        yield str(path)
        return
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)
