"""Clients that read no answer: the connection is closed, and everybody else is answered."""

import io
import socket
import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import psutil
import pytest
from PIL import Image

from daemon.net import listening
from tests.daemon.certificates import self_signed
from tests.daemon.serving.serving_world import Served, World, image_bytes, running
from tests.daemon.serving.test_limits import status_of

HEAD = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"
LIMIT = 0.7
"""What the limit is set to here (seconds)."""
SIDE = 1400
"""Of an image whose overlay is large (pixels)."""


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
    """A plane whose clients may take nothing of their answer for 0.7 s."""
    monkeypatch.setattr(listening, "UNREAD_SECONDS", LIMIT)
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
    """Read a large answer to its end as a slow line does: at an even pace, in four times the limit."""
    head, _, received = wire.recv(4096).partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.splitlines() if line.lower().startswith(b"content-len"))
    assert length > SIDE * SIDE
    count, began = len(received), time.monotonic()
    while count < length:
        part = wire.recv(16_384)
        assert part, f"cut off after {count} of {length} bytes"
        count += len(part)
        time.sleep(max(0.0, began + 4 * LIMIT * count / length - time.monotonic()))


def test_a_client_that_reads_slowly_gets_its_whole_answer_and_the_connection_goes_on(
    slow_served: Served, large_request: bytes
) -> None:
    with narrow_connection(slow_served) as wire:
        wire.sendall(large_request)
        read_slowly(wire)
        wire.sendall(HEAD)
        assert status_of(wire.recv(4096)) == 200
