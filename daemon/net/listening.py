"""Addresses to listen on: looked up once, refused when others can reach them and nothing guards them, then bound.

Certificate and key are tried before anything listens.
"""

import ipaddress
import resource
import socket
import ssl
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import psutil
from prometheus_client import Counter

from configs.errors import ConfigError
from daemon.errors import AddressInUse
from daemon.runtime.logs import get_logger
from daemon.runtime.metric_table import Row, counter

CONTROL_CONNECTIONS, SERVING_CONNECTIONS = 128, 1024
"""Most open connections of a plane; fewer where the process may not open twice as many files."""
UNREAD_SECONDS = 30.0
"""How long a client may take nothing of an answer that is sent to it (seconds); then its connection is closed."""
QUIET_SECONDS = 60.0
"""How long no connection is one too many before the log names the next one (seconds)."""
FATES = ("gave_way", "refused", "dropped", "cut_off")

log = get_logger(__name__)


def excess_counter() -> Row[Counter]:
    """Return the row of a plane's metrics that a `Crowd` counts in."""
    return counter(
        "mfmd_excess_connections",
        "Connections ended because all together were too many, by what happened: gave_way (it was the one idle for "
        "longest), refused (503, all others were busy), dropped (closed before a request could be read), cut_off "
        "(answers that clients had not taken were too large, and this one was the largest)",
        result=FATES,
    )


@dataclass(slots=True)
class Crowd:
    """What all connections of a plane may be together: those that end for it are counted, and logged when it begins."""

    most: int
    """Connections that it may have."""
    counter: Counter | None = None
    _quiet_from: float = field(default=0.0, init=False)

    def count(self, fate: str) -> None:
        """Count a connection that ended; `fate` is one of `FATES`."""
        if self.counter is not None:
            self.counter.labels(result=fate).inc()
        now = time.monotonic()
        if now >= self._quiet_from:
            log.warning("connection_bound_reached", most=self.most, result=fate, metric="mfmd_excess_connections_total")
        self._quiet_from = now + QUIET_SECONDS


@dataclass(frozen=True, slots=True)
class Wanted:
    """An address that a plane is to listen on."""

    section: Literal["control", "serving"]
    host: str
    port: int
    guarded: bool
    """Whether it may be reached from outside: a token is demanded, or the settings allow everybody."""
    remedy: str
    """What to set when it may not."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server bound to `host`: all that the name stands for is loopback.

    A name that stands for nothing is not.
    """
    try:
        return all(map(_is_loopback, _look_up(host, 0)))
    except OSError:
        return False


def allowed_connections(wanted: int) -> int:
    """Return `wanted`, lowered to half of the files that this process may open: the daemon needs others."""
    files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return wanted if files == resource.RLIM_INFINITY else min(wanted, max(1, files // 2))


class Listener(socket.socket):
    """Listens, and closes at once what it accepts beyond `most` connections.

    The HTTP protocol sees a connection after its TLS handshake only.
    """

    def __init__(self, bound: socket.socket, most: int) -> None:
        super().__init__(fileno=bound.detach())
        self._most = most
        self._open: list[socket.socket] = []
        self.on_drop: Callable[[str], None] = lambda fate: None
        """Told of every connection that is closed at once."""

    def accept(self) -> tuple[socket.socket, Any]:
        """Return a connection and its peer; raise ConnectionAbortedError, which asyncio expects, for one too many."""
        connection, peer = super().accept()
        self._open = [held for held in self._open if held.fileno() >= 0]
        if len(self._open) >= self._most:
            connection.close()
            self.on_drop("dropped")
            raise ConnectionAbortedError(f"{self._most} connections are open")
        self._open.append(connection)
        return connection, peer


def listen(wanted: Wanted, backlog: int) -> Listener:
    """Open a listening socket whose connections send at once, and close when the client reads nothing.

    It holds half as many again as the plane may have: one too many is answered, and handshakes need room.
    The name is looked up once: a name server that answers differently the second time changes nothing. Raises
    ConfigError for an unguarded public address, AddressInUse when it cannot be bound; both name the settings.
    """
    try:
        found = _look_up(wanted.host, wanted.port)
        for entry in found:
            if not wanted.guarded and not _is_loopback(entry):
                raise ConfigError(
                    f"{wanted.section}.host: {wanted.host} ({entry[1][0]}) can be reached from outside; "
                    f"{wanted.remedy}, or bind 127.0.0.1"
                )
        family, target = found[0]
        bound = socket.create_server(target, family=family, backlog=backlog)
    except OSError as error:
        place = f"{wanted.section}.host {wanted.host}, {wanted.section}.port {wanted.port}"
        reason = f"{place}: cannot bind: {error.strerror or error}{holder(wanted.port)}"
        raise AddressInUse(f"{reason}; stop what holds it, or choose another port") from error
    most = CONTROL_CONNECTIONS if wanted.section == "control" else SERVING_CONNECTIONS
    listener = Listener(bound, allowed_connections(most) * 3 // 2)
    # Connections inherit the options. Without the first one the body of an answer, written after its head, may wait
    # 40 ms for the client to acknowledge the head; asyncio sets it only on sockets made for IPPROTO_TCP by name.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux; uvicorn itself waits for ever
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * UNREAD_SECONDS))
    return listener


def _look_up(host: str, port: int) -> list[tuple[socket.AddressFamily, Any]]:
    """Family and socket address of everything that `host` stands for, the preferred one first. Raises OSError."""
    try:
        answers = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is empty or too long is no name
        raise OSError(f"not a host name: {error}") from error
    return [(family, target) for family, _, _, _, target in answers]


def holder(port: int) -> str:
    """Return which process listens on a port, as an addition to a message; empty when this user cannot see it."""
    with suppress(psutil.Error, OSError):
        for item in psutil.net_connections("tcp"):
            if item.status == psutil.CONN_LISTEN and getattr(item.laddr, "port", 0) == port and item.pid is not None:
                return f" by process {item.pid} ({psutil.Process(item.pid).name()})"
    return ""


def _is_loopback(entry: tuple[socket.AddressFamily, Any]) -> bool:
    address = ipaddress.ip_address(entry[1][0].partition("%")[0])
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


class TlsFiles(NamedTuple):
    """What a plane speaks TLS with: its certificate and those that signed it (PEM), and its private key (PEM)."""

    certificate: Path
    key: Path


def tls_files(section: str, certificate: Path | None, key: Path | None) -> TlsFiles | None:
    """Return the TLS files of a section's settings; None for plain HTTP.

    Raises ConfigError, naming the file, when one cannot be read, does not hold what it should, they do not belong
    together, or the key is encrypted (nobody is there to type a password).
    """
    if certificate is None or key is None:
        return None
    for name, path in (("certificate", certificate), ("key", key)):
        try:
            path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{section}.{name}: {path} cannot be read: {error.strerror}") from error
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key, lambda: "")
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(
            f"{section}.certificate: {certificate} and {section}.key: {key} cannot be used together: "
            f"{getattr(error, 'reason', None) or error}; give a PEM certificate and its PEM key without a password"
        ) from error
    return TlsFiles(certificate, key)
