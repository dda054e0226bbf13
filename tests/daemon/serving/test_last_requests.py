"""The end of a plane under load: requests on open connections are answered, and told that they are the last."""

import http.client
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from daemon.parts import _child_specs
from daemon.serving import server as server_module
from daemon.serving.plane import InferencePlane
from daemon.serving.server import PlaneServer
from tests.daemon.serving.serving_world import World, wait_until


@contextmanager
def serving(world: World) -> Iterator[tuple[PlaneServer, tuple[str, int]]]:
    """A plane's server in a thread, and its address; stopped at the end if it was not before."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = PlaneServer(InferencePlane(world.settings()))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    address = listener.getsockname()[:2]
    thread.start()
    try:
        wait_until(lambda: server.started, "the server starts")
        yield server, address
        thread.join(20)
        assert not thread.is_alive(), "nothing is in flight any more, and still it waits"
    finally:
        server.should_exit = server.force_exit = True
        thread.join(20)


def refused(address: tuple[str, int]) -> bool:
    try:
        socket.create_connection(address).close()
    except ConnectionRefusedError:
        return True
    return False


def ask(wire: socket.socket, path: str = "/healthz") -> http.client.HTTPResponse:
    wire.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    answer = http.client.HTTPResponse(wire)
    answer.begin()
    answer.read()
    return answer


def test_a_request_on_an_old_connection_is_answered_after_the_listener_closed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "LAST_REQUESTS_SECONDS", 600.0)
    with serving(world) as (server, address), socket.create_connection(address, timeout=20) as wire:
        assert ask(wire).headers["Connection"] is None, "open for the next request"
        server.should_exit = True
        wait_until(lambda: refused(address), "no new connections are taken")
        answer = ask(wire)
        assert (answer.status, answer.headers["Connection"]) == (200, "close")
        assert wire.recv(1) == b"", "closed after what it said is the last answer"


def test_an_answer_in_the_making_says_that_it_is_the_last(world: World) -> None:
    world.add(1)
    with serving(world) as (server, address), socket.create_connection(address, timeout=20) as wire:
        wait_until(lambda: ask(wire, "/readyz").status == 200, "the version is loaded")
        wire.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nExpect: 100-continue\r\n\r\n")
        assert wire.recv(4096).startswith(b"HTTP/1.1 100"), "the request is in progress"
        server.should_exit = True
        wait_until(lambda: refused(address), "no new connections are taken")
        wire.sendall(b"x")
        answer = http.client.HTTPResponse(wire)
        answer.begin()
        assert 400 <= answer.status < 500 and answer.headers["Connection"] == "close"


def test_a_supervised_plane_is_not_killed_while_it_answers(world: World) -> None:
    specs = {spec.name: spec for spec in _child_specs(world.settings(), world.root / "mfmd.yaml")}
    plane = InferencePlane(world.settings())
    config = PlaneServer(plane).config
    plane.stop()
    needed = (config.timeout_graceful_shutdown or 0) + server_module.LAST_REQUESTS_SECONDS
    assert specs["serve"].grace_seconds >= needed + 5, "and some seconds for its threads"
    assert specs["observe"].grace_seconds < 10


def test_a_connection_without_requests_does_not_hold_up_the_end(world: World) -> None:
    with serving(world) as (server, address), socket.create_connection(address, timeout=20) as wire:
        ask(wire)
        server.should_exit = True
        assert wire.recv(1) == b"", "closed while idle"
