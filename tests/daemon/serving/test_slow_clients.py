"""Clients that hold a connection, send no request or read no answer: it is closed, and everybody else is answered."""

import io
import socket
import ssl
import threading
import time
from asyncio import constants
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from PIL import Image

from daemon.net import connection_limits
from daemon.serving import server
from tests.daemon.certificates import self_signed
from tests.daemon.serving.serving_world import Served, World, image_bytes, running
from tests.daemon.serving.test_limits import POST, connection, status_of

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n"
LIMIT = 0.7
"""What the limits are set to here (seconds)."""
SIDE = 1400
"""Of an image whose overlay is large (pixels)."""


@pytest.fixture
def strict(world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A plane that waits 0.7 s for a head and for the rest of a refused body, and looks at readers as often."""
    monkeypatch.setattr(connection_limits, "HEAD_SECONDS", LIMIT)
    monkeypatch.setattr(connection_limits, "REST_SECONDS", LIMIT)
    monkeypatch.setattr(connection_limits, "READ_SECONDS", LIMIT)
    world.add(1)
    with running(world.settings()) as served:
        served.wait_for(1)
        yield served


def answer_of(wire: socket.socket) -> bytes:
    """One answer, whole: it is short and has its length in its head."""
    received = b""
    while b"\r\n\r\n" not in received or not received.partition(b"\r\n\r\n")[2]:
        part = wire.recv(4096)
        assert part, received
        received += part
    return received


def is_closed(wire: socket.socket) -> bool:
    """Wait for the other side to close; false if it sends something, TimeoutError if it does nothing for 20 s."""
    try:
        return wire.recv(4096) == b""
    except ConnectionError:  # reset: it closed on bytes that it had not read
        return True


def stays_open(wire: socket.socket) -> None:
    """Nothing comes, not even the end, for longer than a head may take."""
    wire.settimeout(2 * LIMIT)
    with pytest.raises(TimeoutError):
        wire.recv(1)
    wire.settimeout(20)


def drip(wire: socket.socket, content: bytes) -> bool:
    """Send a byte every 20 ms until the other side closes; false if it took all of `content`."""
    wire.settimeout(0.02)
    try:
        for position in range(len(content)):
            wire.sendall(content[position : position + 1])
            try:
                if wire.recv(4096) == b"":
                    return True
            except TimeoutError:
                continue
    except ConnectionError:
        return True
    return False


@pytest.mark.parametrize("part", [b"", b"GET", HEAD])
def test_a_client_that_sends_no_whole_head_is_hung_up_on_while_others_are_answered(strict: Served, part: bytes) -> None:
    with connection(strict) as wire:
        wire.sendall(part)
        closed: list[bool] = []
        waiting = threading.Thread(target=lambda: closed.append(is_closed(wire)))
        waiting.start()
        answered = 0
        while waiting.is_alive():
            assert strict.segment(image_bytes()).status_code == 200
            answered += 1
        waiting.join()
    assert closed == [True] and answered > 0


def test_a_head_that_drips_has_no_more_time_than_one_that_stops(strict: Served) -> None:
    with connection(strict) as wire:
        assert drip(wire, HEAD + b"X-Slow: " + b"x" * 1500)


def test_a_further_head_is_timed_from_its_first_byte(strict: Served) -> None:
    with connection(strict) as wire:
        for _ in range(2):
            wire.sendall(HEAD + b"\r\n")
            assert status_of(answer_of(wire)) == 200
        stays_open(wire)
        wire.sendall(HEAD + b"\r\n")
        assert status_of(answer_of(wire)) == 200
        wire.sendall(HEAD)
        assert is_closed(wire)


def test_a_further_head_that_began_behind_a_request_is_timed_too(strict: Served) -> None:
    with connection(strict) as wire:
        wire.sendall(HEAD + b"\r\n" + HEAD)
        assert status_of(answer_of(wire)) == 200
        assert is_closed(wire)


def test_the_rest_of_a_refused_body_is_not_read_for_ever(strict: Served) -> None:
    with connection(strict) as wire:
        wire.sendall(POST % 10**12)
        assert status_of(answer_of(wire)) == 413
        assert drip(wire, b"x" * 1500)


def test_after_the_rest_of_a_refused_body_the_connection_is_idle_and_no_longer_than_others(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", LIMIT)
    world.add(1)
    with running(world.settings(max_body_bytes=10)) as served:
        served.wait_for(1)
        with connection(served) as wire:
            wire.sendall(POST % 20)
            assert status_of(answer_of(wire)) == 413
            wire.sendall(b"x" * 20)
            assert is_closed(wire)


def test_the_head_limit_does_not_touch_a_body(strict: Served) -> None:
    content = image_bytes()
    with connection(strict) as wire:
        wire.sendall(POST % len(content))
        stays_open(wire)
        wire.sendall(content)
        assert status_of(answer_of(wire)) == 200


@pytest.fixture(scope="module")
def large_request() -> bytes:
    """A request whose answer, an overlay of some 6 MB, fits into no buffer of a socket."""
    noise = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG", compress_level=1)
    head = b"POST /v1/segment?format=overlay HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"
    return head % len(stream.getvalue()) + stream.getvalue()


@pytest.fixture(params=["http", "https"])
def slow_served(request: pytest.FixtureRequest, world: World, monkeypatch: pytest.MonkeyPatch) -> Iterator[Served]:
    """A plane that looks at readers every 0.7 s, and keeps a connection that is idle no longer than that."""
    monkeypatch.setattr(connection_limits, "READ_SECONDS", LIMIT)
    monkeypatch.setattr(server, "KEEP_ALIVE_SECONDS", LIMIT)
    monkeypatch.setattr(constants, "SSL_SHUTDOWN_TIMEOUT", LIMIT)  # else asyncio has patience for 30 s after that
    world.add(1)
    files: dict[str, object] = {}
    if request.param == "https":
        certificate, key = self_signed(world.root)
        files = {"certificate": certificate, "key": key}
    with running(world.settings(**files)) as served:
        served.wait_for(1)
        yield served


@contextmanager
def narrow_connection(served: Served) -> Iterator[socket.socket]:
    """A connection whose client's system takes little that the client does not read."""
    with socket.socket() as plain:
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8192)
        plain.settimeout(20)
        plain.connect((served.client.base_url.host, served.client.base_url.port or 0))
        if served.client.base_url.scheme == "http":
            yield plain
            return
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        with context.wrap_socket(plain) as wire:
            yield wire


def test_a_client_that_reads_no_answer_is_hung_up_on_while_others_are_answered(
    slow_served: Served, large_request: bytes
) -> None:
    with narrow_connection(slow_served) as wire:
        wire.sendall(large_request)
        assert status_of(wire.recv(4096)) == 200
        own = wire.getsockname()[1]
        deadline = time.monotonic() + 20
        while any(one.raddr and one.raddr.port == own for one in psutil.Process().net_connections("tcp")):
            assert time.monotonic() < deadline, "the server still holds its end"
            assert slow_served.segment(image_bytes()).status_code == 200
    slow_served.assert_idle()


def read_slowly(wire: socket.socket) -> None:
    """Read a large answer to its end as a slow line does: at an even pace over four looks at the reader."""
    head, _, received = wire.recv(4096).partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-len"))
    assert length > SIDE * SIDE
    count, began = len(received), time.monotonic()
    while count < length:
        part = wire.recv(16_384)
        assert part, f"cut off after {count} of {length} bytes"
        count += len(part)
        time.sleep(max(0.0, began + 4 * LIMIT * count / length - time.monotonic()))


def test_a_client_that_reads_slowly_gets_its_whole_answer_and_is_not_idle_meanwhile(
    slow_served: Served, large_request: bytes
) -> None:
    with narrow_connection(slow_served) as wire:
        wire.sendall(large_request)
        read_slowly(wire)


def test_after_an_answer_that_was_read_slowly_the_connection_goes_on(strict: Served, large_request: bytes) -> None:
    with narrow_connection(strict) as wire:
        wire.sendall(large_request)
        read_slowly(wire)
        wire.sendall(HEAD + b"\r\n")
        assert status_of(answer_of(wire)) == 200
