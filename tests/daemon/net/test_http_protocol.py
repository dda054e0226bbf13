"""The HTTP protocol of both planes, driven by raw sockets: what is late, endless or odd."""

import contextlib
import gc
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest
import uvicorn
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from daemon.net.http_protocol import LARGEST_HEAD, PARSED_AT_ONCE, bounded_http
from daemon.net.listening import Crowd

ARRIVAL = 0.5
"""Within it a request must arrive here (seconds)."""
OK = b"HTTP/1.1 200 OK"
POST = b"POST / HTTP/1.1\r\nConnection: close\r\n"
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
LAST_GET = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
Dial = Callable[[], socket.socket]


async def _app(scope, receive, send):
    """Refuse `/refuse` before its body is read, answer `/late` late, and everything else with the size of its body."""
    size, more = 0, scope["path"] != "/refuse"
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    if scope["path"] == "/late":
        while (await receive())["type"] != "http.disconnect":
            pass
        scope["state"]["left"].set()
        return
    body = str(size).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def left() -> threading.Event:
    """Set when the client of `/late` has left."""
    return threading.Event()


@pytest.fixture(scope="module")
def dial(left: threading.Event) -> Iterator[Dial]:
    """Connect to a server."""
    yield from _serve(left, ARRIVAL, 64, 1)


@pytest.fixture
def dial_small() -> Iterator[Dial]:
    """Connect to a server with at most three connections."""
    yield from _serve(threading.Event(), 20.0, 3, 20)


def _serve(left: threading.Event, arrival: float, most: int, idle: int) -> Iterator[Dial]:
    async def app(scope, receive, send):
        scope["state"] = {"left": left}
        await _app(scope, receive, send)

    config = uvicorn.Config(
        app,
        http=bounded_http(arrival, Crowd(most)),
        ws="none",
        log_config=None,
        lifespan="off",
        timeout_keep_alive=idle,
    )
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield lambda: socket.create_connection(listener.getsockname(), timeout=20)
    server.should_exit = True
    thread.join(20)
    listener.close()


def _all(connection: socket.socket) -> bytes:
    """Read until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            received += part
    return received


@pytest.mark.parametrize(
    ("request_bytes", "size"),
    [
        (LAST_GET, b"0"),
        (b"\r\n" + LAST_GET, b"0"),
        (LAST_GET.replace(b"GET /", b"GET http://x:1/healthz"), b"0"),
        (POST + b"Content-Length: 3\r\n\r\nabc", b"3"),
        (POST.replace(b"close", b"Upgrade, close") + b"Upgrade: h2c\r\nContent-Length: 3\r\n\r\nabc", b"3"),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n1\r\na\r\n2;x=y\r\nbc\r\n0\r\nA: b\r\n\r\n", b"3"),
    ],
    ids=["plain", "empty line before", "absolute form", "length", "upgrade", "chunks"],
)  # fmt: skip
@pytest.mark.parametrize("half", [False, True], ids=["open", "half-closed"])
def test_what_http_allows_is_answered(dial: Dial, request_bytes: bytes, size: bytes, half: bool) -> None:
    with dial() as connection:
        connection.sendall(request_bytes)
        if half:
            connection.shutdown(socket.SHUT_WR)
        answer = _all(connection)
    assert answer.startswith(OK) and answer.endswith(b"\r\n\r\n" + size), answer[:200]


def _get(connection: socket.socket) -> None:
    """Send a request, and read its whole answer."""
    connection.sendall(GET)
    answer = b""
    while not answer.endswith(b"\r\n\r\n0"):
        answer += connection.recv(4096)
    assert answer.startswith(OK)


def test_one_connection_too_many_closes_the_one_that_is_idle_for_longest(dial_small: Dial) -> None:
    with contextlib.ExitStack() as stack:
        first, *others = (stack.enter_context(dial_small()) for _ in range(3))
        for connection in (first, *others):
            _get(connection)
        with dial_small() as fourth:
            _get(fourth)
            assert _all(first) == b""
            _get(others[0])  # the others stay


def test_while_every_connection_is_busy_one_more_is_refused(dial_small: Dial) -> None:
    with contextlib.ExitStack() as stack:
        for connection in [stack.enter_context(dial_small()) for _ in range(3)]:
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
        answer, deadline = b"", time.monotonic() + 10
        while not answer.startswith(b"HTTP/1.1 503 "):  # one that was not read yet is idle, and gives way
            assert time.monotonic() < deadline
            connection = stack.enter_context(dial_small())
            connection.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n")
            connection.settimeout(0.2)
            with contextlib.suppress(TimeoutError):
                answer = _all(connection)
    assert b"too_many_connections" in answer


CHUNKED = b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
INVALID = {
    "no HTTP": b"\x16\x03\x01\x02\x00\x01\x00",
    "two lengths": POST + b"Content-Length: 1\r\nContent-Length: 2\r\n\r\n",
    "length and chunks": POST + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
    "huge length": POST + b"Content-Length: 18446744073709551617\r\n\r\n",
    "broken chunk": CHUNKED + b"2\r\nabc",
    "large head": b"GET / HTTP/1.1\r\nA: " + b"b" * (LARGEST_HEAD + PARSED_AT_ONCE),
    "long extension": CHUNKED + b"1;" + b"x" * (LARGEST_HEAD + PARSED_AT_ONCE),
    "proxy": b"CONNECT x:80 HTTP/1.1\r\n\r\n",
    "proxy to a path": b"CONNECT /healthz HTTP/1.1\r\nA: " + b"b" * 60_000 + b"\r\n\r\n",
    "no path": b"GET http://x HTTP/1.1\r\n\r\n",
    "no port": b"GET http://x:99999/ HTTP/1.1\r\n\r\n",
    "no ASCII": b"GET /\xe9 HTTP/1.1\r\n\r\n",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("before", [b"", GET * 3], ids=["alone", "behind others"])
@pytest.mark.parametrize("name", INVALID)
def test_what_is_no_request_gets_a_code_after_the_answers_before(
    dial: Dial, name: str, before: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    with dial() as connection:
        connection.sendall(before + INVALID[name])
        answers = _all(connection).split(b"HTTP/1.1 ")[1:]
    assert [answer[:3] for answer in answers] == [b"200"] * (len(before) // len(GET)) + [b"400"]
    assert json.loads(answers[-1].partition(b"\r\n\r\n")[2])["code"] == "invalid_http"
    assert not [record for record in caplog.records if record.exc_info]


def test_a_body_that_is_refused_and_then_invalid_gets_one_answer(dial: Dial) -> None:
    with dial() as connection:
        connection.sendall(CHUNKED.replace(b"/ ", b"/refuse "))
        answer = connection.recv(1000)
        connection.sendall(b"zz\r\n")
        assert (answer + _all(connection)).count(b"HTTP/1.1 ") == 1


def test_a_client_of_http_1_0_is_never_told_to_continue(dial: Dial) -> None:
    head = b"POST / HTTP/1.%d\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\na"
    for minor, first in ((0, b"200"), (1, b"100")):
        with dial() as connection:
            connection.sendall(head % minor)
            assert _all(connection).startswith(b"HTTP/1.1 " + first)


LATE = {
    "nothing": b"",
    "an empty line": b"\r\n",
    "half a line": b"GET / HT",
    "half a head": b"GET / HTTP/1.1\r\nHost: x\r\n",
    "half a body": b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\nab",
    "half a refused body": b"POST /refuse HTTP/1.1\r\nContent-Length: 9\r\n\r\nab",
    "half a second request": GET + b"GET / HT",
    "half a request after many": GET * 1000 + b"GET / HT",
}


def test_a_request_that_does_not_arrive_loses_its_connection(dial: Dial) -> None:
    """All wait at the same time."""
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        connections = [stack.enter_context(dial()) for _ in LATE]
        for connection, sent in zip(connections, LATE.values(), strict=True):
            connection.sendall(sent)
        for connection in connections:
            _all(connection)
    assert time.monotonic() - began < 10 * ARRIVAL


def test_dripping_does_not_extend_the_time(dial: Dial) -> None:
    with dial() as connection:
        connection.sendall(b"POST / HTTP/1.1\r\nContent-Length: 100000\r\n\r\n")
        began = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - began < 20 * ARRIVAL:
                connection.sendall(b"x")
                time.sleep(ARRIVAL / 20)
    assert time.monotonic() - began < 10 * ARRIVAL


@pytest.mark.parametrize(
    ("start", "endless"),
    [
        (b"GET /", b"a" * 10_000),
        (b"GET / HTTP/1.1\r\nA: ", b"b" * 10_000),
        (b"GET / HTTP/1.1\r\n", b"A: b\r\n" * 1000),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;x=", b"c" * 10_000),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nA: ", b"d" * 10_000),
    ],
    ids=["target", "header", "headers", "chunk extension", "trailer"],
)
def test_an_endless_head_ends_the_connection(dial: Dial, start: bytes, endless: bytes) -> None:
    sent = 0
    with dial() as connection:
        connection.sendall(start)
        with contextlib.suppress(ConnectionError):
            while sent < 100 * LARGEST_HEAD:
                connection.sendall(endless)
                sent += len(endless)
    assert sent < 100 * LARGEST_HEAD  # the kernel's own buffers take some megabytes


def test_a_half_closed_client_is_not_awaited_for_ever(
    dial: Dial, left: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("daemon.net.http_protocol.HALF_CLOSED_SECONDS", 0.3)
    with dial() as connection:
        connection.sendall(LAST_GET.replace(b"/ ", b"/late "))
        connection.shutdown(socket.SHUT_WR)
        assert left.wait(20)
        assert _all(connection) == b""


def test_a_connection_serves_many_requests(dial: Dial) -> None:
    with dial() as connection:
        until = time.monotonic() + 1.5 * ARRIVAL
        while time.monotonic() < until:
            connection.sendall(GET)
            answer = b""
            while not answer.endswith(b"\r\n\r\n0"):
                part = connection.recv(1000)
                assert part, "the server closed the connection"
                answer += part


def test_a_body_of_tiny_chunks_does_not_stop_others(dial: Dial) -> None:
    waits: list[float] = []
    with dial() as slow, dial() as other:

        def send() -> None:
            with contextlib.suppress(ConnectionError):
                slow.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + b"1\r\nx\r\n" * 500_000)

        sender = threading.Thread(target=send)
        sender.start()
        while not waits or sender.is_alive():
            began = time.monotonic()
            other.sendall(GET)
            assert other.recv(1000)
            waits.append(time.monotonic() - began)
        sender.join()
    assert max(waits) < 1.0  # h11 parses what one read brings in 3 s


def test_requests_sent_ahead_are_answered_in_order(dial: Dial) -> None:
    sizes = [number % 9 * 1000 for number in range(200)]
    sent = b"".join(b"POST / HTTP/1.1\r\nContent-Length: %d\r\n\r\n%s" % (size, b"x" * size) for size in sizes)
    with dial() as connection:
        sender = threading.Thread(target=connection.sendall, args=(sent + LAST_GET,))
        sender.start()
        answers = _all(connection)
        sender.join()
    assert [int(answer.rpartition(b"\r\n")[2]) for answer in answers.split(OK)[1:]] == [*sizes, 0]


def test_of_requests_sent_ahead_few_wait_in_memory(dial: Dial) -> None:
    def send() -> None:
        with contextlib.suppress(OSError):
            many.sendall(GET * 300_000)

    with dial() as many:
        sender = threading.Thread(target=send)
        sender.start()
        until = time.monotonic() + ARRIVAL
        while time.monotonic() < until:
            many.recv(1_000_000)
        waiting = sum(type(held) is RequestResponseCycle for held in gc.get_objects())
        with contextlib.suppress(OSError):  # on a busy machine the server may have ended it
            many.shutdown(socket.SHUT_RDWR)
        sender.join()
    assert waiting < 1000  # one read brings 8000


@pytest.mark.parametrize("half", [False, True], ids=["at once", "later"])
def test_an_offer_of_another_protocol_leaves_the_connection_in_step(dial: Dial, half: bool) -> None:
    head = b"POST / HTTP/1.1\r\nConnection: Upgrade\r\nUpgrade: h2c\r\nContent-Length: %d\r\n\r\n" % len(GET)
    with dial() as connection:
        connection.sendall(head)
        if half:
            time.sleep(0.1)
        connection.sendall(GET + LAST_GET)
        answers = _all(connection)
    assert [answer.rpartition(b"\r\n")[2] for answer in answers.split(OK)[1:]] == [b"%d" % len(GET), b"0"]


def test_a_refused_body_that_comes_late_leaves_no_idle_connection(dial: Dial) -> None:
    with dial() as connection:
        connection.sendall(b"POST /refuse HTTP/1.1\r\nContent-Length: 2\r\n\r\na")
        answer = b""
        while not answer.endswith(b"\r\n\r\n0"):
            answer += connection.recv(1000)
        connection.sendall(b"b")
        assert connection.recv(1000) == b""
