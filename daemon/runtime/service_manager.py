"""Messages to systemd through `$NOTIFY_SOCKET`: ready, at work, reloading, stopping. Source: sd_notify(3)."""

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

START_MICROSECONDS = 60_000_000
"""How much longer systemd waits for a daemon that works and is not ready, from each message on."""


class ServiceManager:
    """Sends datagrams to the manager that started this process; without one it does nothing. Any thread may use it."""

    def __init__(self) -> None:
        """Take the variables out of the environment: a child that had them could answer for the daemon."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        self._address = "\0" + address[1:] if address.startswith("@") else address  # a name without a file
        watched = "WATCHDOG_USEC" in os.environ
        watched &= os.environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        os.environ.pop("WATCHDOG_USEC", None)
        self._watched, self._ready, self._status = watched, False, ""

    def step(self, dead: list[str], not_ready: list[str]) -> None:
        """Report once that the daemon is ready, and each time that it works: `dead` names loops that do not."""
        status = f"Not ready: {'; '.join(not_ready)}" if not_ready else "Ready"
        if status != self._status:
            self._status = status
            self._send(f"STATUS={status.replace(os.linesep, ' ')}")
        if not self._ready and not dead:
            self._ready = not not_ready
            self._send("READY=1" if self._ready else f"EXTEND_TIMEOUT_USEC={START_MICROSECONDS}")
        if self._watched and not dead:
            self._send("WATCHDOG=1")

    @contextmanager
    def reloading(self) -> Iterator[None]:
        """Report a reload of the settings, and its end."""
        if self._ready:
            self._send(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")
        try:
            yield
        finally:
            if self._ready:
                self._send("READY=1")

    def stopping(self) -> None:
        """Report that the daemon stops."""
        self._send("STOPPING=1\nSTATUS=Stopping")

    def _send(self, message: str) -> None:
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out:  # the manager may be gone
                out.connect(self._address)
                out.send(message.encode())
