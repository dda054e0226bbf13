"""Connections that outlive their use: of clients that leave TLS open, read nothing, or still send at the end."""

import asyncio
import contextlib
import json
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from prometheus_client import CollectorRegistry, Counter

from daemon.net.http_protocol import bounded_http
from daemon.net.listening import Crowd, excess_counter, listen
from daemon.net.middleware import LastAnswers
from daemon.net.token import control_address
from tests.daemon.certificates import self_signed
from tests.daemon.net.test_http_protocol import GET, OK, POST, _all

MOST = 3
HALF = POST + b"Content-Length: 9\r\n\r\nab"
HELD = GET.replace(b"/ ", b"/held ")
LARGE = GET.replace(b"/ ", b"/large ")
Dial = Callable[[bytes], socket.socket]


class _Served(uvicorn.Server):
    """Answers every request after its body; `/held` once `release` is set, `/large` with more than kernels buffer."""

    def __init__(self, **more: Any) -> None:
        self.excess = excess_counter().build(CollectorRegistry())
        options = {"interface": "asgi3", "ws": "none", "log_config": None, "lifespan": "off", **more}
        super().__init__(
            uvicorn.Config(LastAnswers(self._answer), http=bounded_http(20.0, Crowd(MOST, self.excess)), **options)
        )
        self.holds, self.release = threading.Event(), threading.Event()

    async def _answer(self, scope, receive, send) -> None:
        while (message := await receive()).get("more_body", False):
            pass
        if message["type"] == "http.disconnect":
            return
        while scope["path"] == "/held" and not self.release.is_set():
            self.holds.set()
            await asyncio.sleep(0.01)
        body = b"0" * (16_000_000 if scope["path"] == "/large" else 1)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
        await send({"type": "http.response.body", "body": body})


@contextmanager
def _serving(**more: Any) -> Iterator[tuple[_Served, Dial]]:
    """A server, and what connects to it and sends."""
    server = _Served(**more)
    with socket.create_server(("127.0.0.1", 0)) as listener, ExitStack() as stack:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        address = listener.getsockname()

        def dial(sent: bytes) -> socket.socket:
            connection = stack.enter_context(socket.socket())
            connection.settimeout(20)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)  # else the kernel may take an answer
            connection.connect(address)
            connection.sendall(sent)
            return connection

        try:
            yield server, dial
        finally:
            stack.close()
            server.release.set()
            server.should_exit = True
            thread.join(20)
    assert not thread.is_alive()


def _counted(excess: Counter) -> dict[str, float]:
    return {
        sample.labels["result"]: sample.value
        for sample in next(iter(excess.collect())).samples
        if sample.name.endswith("_total")
    }


def test_who_does_not_read_an_answer_is_busy_and_who_is_refused_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    with _serving() as (server, dial):
        slow = [dial(LARGE) for _ in range(MOST)]
        assert all(connection.recv(1) for connection in slow)
        head, _, body = _all(dial(b"")).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 503 ")
        assert json.loads(body)["code"] == "too_many_connections"
        _all(dial(b""))
        assert _counted(server.excess) == {"gave_way": 0, "refused": 2, "dropped": 0, "cut_off": 0}
        assert caplog.text.count("connection_bound_reached") == 1, "one line when it begins, not one a connection"
        assert len(_all_of(slow[0], 16_000_000)) >= 16_000_000, "its answer is not cut off"


def test_answers_that_nobody_takes_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.net.http_protocol.MOST_UNREAD", 4_000_000)
    with _serving() as (server, dial):
        first = dial(LARGE)
        assert first.recv(1)
        second = dial(LARGE)
        assert second.recv(1)
        assert len(_all_of(second, 16_000_000)) >= 16_000_000, "the newest is never cut off"
        with contextlib.suppress(ConnectionResetError):
            assert len(_all_of(first, 16_000_000)) < 16_000_000
        assert _counted(server.excess)["cut_off"] == 1


def _all_of(connection: socket.socket, size: int) -> bytearray:
    received = bytearray()
    while len(received) < size and (part := connection.recv(1 << 20)):
        received += part
    return received


def test_a_tls_connection_that_gives_way_does_not_wait_for_its_client(tmp_path: Path) -> None:
    certificate, key = self_signed(tmp_path)
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    with _serving(ssl_certfile=certificate, ssl_keyfile=key) as (server, dial), ExitStack() as stack:
        held = [stack.enter_context(context.wrap_socket(dial(b""))) for _ in range(MOST + 1)]
        with socket.socket(fileno=held[0].detach()) as bare:  # a client that never ends its side
            bare.settimeout(10)
            while bare.recv(65536):
                pass
        assert _counted(server.excess) == {"gave_way": 1, "refused": 0, "dropped": 0, "cut_off": 0}


def test_at_the_end_half_a_request_is_not_awaited_and_whole_ones_are_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.net.http_protocol.LAST_ARRIVAL_SECONDS", 0.05)
    with _serving() as (server, dial):
        held, half = dial(HELD), dial(HALF)
        behind = dial(HELD + HALF)
        assert server.holds.wait(20)
        server.should_exit = True
        assert json.loads(_all(half).rpartition(b"\r\n")[2])["code"] == "shutting_down"
        server.release.set()
        assert _all(held).startswith(OK)
        first, _, second = _all(behind).partition(b"HTTP/1.1 503 ")
        assert first.startswith(OK) and b"shutting_down" in second


def test_a_request_that_outlasts_the_stop_is_answered_without_a_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with _serving(timeout_graceful_shutdown=0.1) as (server, dial):
        held = dial(HELD)
        assert server.holds.wait(20)
        server.should_exit = True
        head, _, body = _all(held).partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 ") and json.loads(body)["code"] == "shutting_down"
    assert not [record for record in caplog.records if record.exc_info]


def test_connections_that_never_speak_tls_are_bounded_and_counted_too(
    make_settings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("daemon.net.listening.CONTROL_CONNECTIONS", 2)
    excess = excess_counter().build(CollectorRegistry())
    with listen(control_address(make_settings(control={"port": 0}).control), 9) as listener, ExitStack() as stack:
        listener.on_drop = Crowd(2, excess).count
        for _ in range(6):
            stack.enter_context(socket.create_connection(listener.getsockname()))
        held = [stack.enter_context(listener.accept()[0]) for _ in range(3)]
        for _ in range(2):
            with pytest.raises(ConnectionAbortedError):
                listener.accept()
        assert _counted(excess) == {"gave_way": 0, "refused": 0, "dropped": 2, "cut_off": 0}
        assert caplog.text.count("connection_bound_reached") == 1
        held[0].close()
        listener.accept()[0].close()
