"""Limits on time and on what all requests hold together: late bodies, late answers, too many bodies."""

import asyncio
import socket
import threading
import tracemalloc
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import ExitStack, contextmanager

import httpx
import pytest
from starlette.requests import Request
from starlette.types import Message

from daemon.serving.api import body
from tests.daemon.serving.serving_world import HEIGHT, WIDTH, Served, World, image_bytes, running, wait_until

POST = b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n"


@pytest.fixture
def hasty(world: World) -> Iterator[Served]:
    """A plane that gives a request 1 s and runs one image at a time."""
    world.add(1)
    choices = {"request_seconds": 1.0, "max_batch_images": 1, "max_delay_ms": 0.0, "queue_images": 4}
    with running(world.settings(**choices)) as served:
        served.wait_for(1)
        yield served


@contextmanager
def connection(served: Served) -> Iterator[socket.socket]:
    """A bare connection to the plane."""
    with socket.create_connection((served.client.base_url.host, served.client.base_url.port or 0), timeout=20) as wire:
        yield wire


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


@pytest.mark.parametrize("part", [b"", b"abc"])
def test_a_late_body_is_408(hasty: Served, part: bytes) -> None:
    with connection(hasty) as wire:
        wire.sendall(POST % 100 + part)
        assert status_of(wire.recv(4096)) == 408
    assert hasty.metric("mfmd_requests_refused_total", reason="body_timeout") == 1
    wait_until(lambda: hasty.plane.bodies.held == 0, "the bytes are given back")


def test_a_body_that_drips_is_408_all_the_same(hasty: Served) -> None:
    """The limit is on the whole request, not on the silence between two parts."""
    with connection(hasty) as wire:
        wire.sendall(POST % 1_000_000)
        answer = threading.Event()
        received: list[bytes] = []

        def listen() -> None:
            received.append(wire.recv(4096))
            answer.set()

        listener = threading.Thread(target=listen)
        listener.start()
        for _ in range(1000):
            if answer.wait(0.02):
                break
            wire.sendall(b"x")
        listener.join(20)
        assert received and status_of(received[0]) == 408


@pytest.mark.parametrize("path", ["/v2/models/segmentation/infer", "/v2/repository/index"])
def test_every_body_has_the_limit(world: World, path: str) -> None:
    world.add(1)
    with running(world.settings(request_seconds=0.2)) as served:
        served.wait_for(1)
        with connection(served) as wire:
            head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n"
            wire.sendall(head.encode())
            assert status_of(wire.recv(4096)) == 408


def test_a_late_answer_is_503_and_its_place_is_free(hasty: Served) -> None:
    gate = threading.Event()
    live = hasty.plane.slots.live
    assert live is not None
    handle = live.forward.network.register_forward_pre_hook(lambda *_: gate.wait(30) and None)
    answers: list[httpx.Response] = []
    clients = [threading.Thread(target=lambda: answers.append(hasty.segment(image_bytes()))) for _ in range(3)]
    for client in clients:
        client.start()
    for client in clients:
        client.join(30)
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(503, "request_timeout")] * 3
    assert all(int(answer.headers["Retry-After"]) >= 1 for answer in answers)
    wait_until(lambda: hasty.plane.batcher.depth == 0, "those that waited left the queue")
    assert hasty.metric("mfmd_requests_total", code="503", endpoint="/v1/segment") == 3
    handle.remove()
    gate.set()
    hasty.assert_idle()
    wait_until(lambda: hasty.segment(image_bytes()).status_code == 200, "the plane answers again")


def test_a_slow_image_among_many_infer_images_is_503_in_the_protocol(hasty: Served) -> None:
    gate = threading.Event()
    live = hasty.plane.slots.live
    assert live is not None
    handle = live.forward.network.register_forward_pre_hook(lambda *_: gate.wait(30) and None)
    tensor = {"name": "images", "shape": [2, 2, 2, 3], "datatype": "UINT8", "data": [0] * 24}
    answer = hasty.client.post("/v2/models/segmentation/infer", json={"inputs": [tensor]})
    handle.remove()
    gate.set()
    assert (answer.status_code, answer.json()["error"]) == (503, answer.json()["message"])
    hasty.assert_idle()


def test_who_hangs_up_frees_his_place(world: World) -> None:
    world.add(1)
    with running(world.settings(max_batch_images=1, max_delay_ms=0.0, queue_images=4)) as served:
        served.wait_for(1)
        live, gate, at_work = served.plane.slots.live, threading.Event(), threading.Event()
        assert live is not None

        def closed(*_: object) -> None:
            at_work.set()
            assert gate.wait(30)

        handle, image = live.forward.network.register_forward_pre_hook(closed), image_bytes()
        with ExitStack() as gone:
            for number in range(5):
                assert number == 0 or at_work.wait(30), "or there would be no room for the fifth"
                gone.enter_context(connection(served)).sendall(POST % len(image) + image)
            wait_until(lambda: served.plane.batcher.depth == 4, "one is at work, four wait")
        wait_until(lambda: served.plane.batcher.depth == 0, "those who wait have left")
        wait_until(lambda: served.plane.bodies.held == 0, "and their bodies")
        assert live.holds == 1, "what is at work goes on"
        left = "mfmd_requests_refused_total", {"reason": "client_disconnected"}
        wait_until(lambda: served.metric(left[0], **left[1]) == 5, "all five are counted")
        gate.set()
        handle.remove()
        assert served.segment(image).status_code == 200
        assert served.metric("mfmd_batch_size_sum") == 2, "of the five only one was computed"
        served.assert_idle()


def test_bodies_are_bounded_together(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "LARGEST_AT_ONCE", 2)
    world.add(1)
    with running(world.settings(max_body_bytes=20_000)) as served:
        served.wait_for(1)
        with connection(served) as first, connection(served) as second:
            for wire in (first, second):
                wire.sendall(POST % 19_000 + b"\0" * 18_000)
            wait_until(lambda: served.plane.bodies.held == 36_000, "both are held")
            refused = served.segment(b"\0" * 5_000)
            assert (refused.status_code, refused.json()["code"]) == (503, "too_many_bodies")
            assert int(refused.headers["Retry-After"]) >= 1
            assert served.client.get("/healthz").status_code == 200
            for wire in (first, second):
                wire.sendall(b"\0" * 1_000)
                assert status_of(wire.recv(4096)) == 415
        wait_until(lambda: served.plane.bodies.held == 0, "the bytes are given back")
        assert served.segment(image_bytes()).status_code == 200


@pytest.fixture
def held(world: World) -> Iterator[tuple[Served, threading.Event]]:
    """A plane whose forward passes wait for the event."""
    world.add(1)
    with running(world.settings(max_pixels=HEIGHT * WIDTH)) as served:
        served.wait_for(1)
        live, gate = served.plane.slots.live, threading.Event()
        assert live is not None
        live.forward.network.register_forward_pre_hook(lambda *_: gate.wait(30) and None)
        yield served, gate
        gate.set()


def test_an_answer_does_not_wait_for_images_that_came_later(held: tuple[Served, threading.Event]) -> None:
    (served, gate), later = held, threading.Event()
    with ThreadPoolExecutor(1) as client:
        answer = client.submit(served.segment, image_bytes())
        wait_until(lambda: served.plane.slots.live is not None and served.plane.slots.live.holds > 1, "it is at work")
        for _ in range(8):
            served.plane._pool.submit(later.wait, 10)
        gate.set()
        try:
            assert answer.result(5).status_code == 200
        finally:
            later.set()


def test_label_maps_are_bounded_together(held: tuple[Served, threading.Event], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("daemon.serving.plane.LABELS_AT_ONCE", 2)
    served, gate = held
    with ThreadPoolExecutor(3) as clients:
        answers = [clients.submit(served.segment, image_bytes()) for _ in range(3)]
        refused = next(as_completed(answers, 20)).result()
        assert (refused.status_code, refused.json()["code"]) == (503, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        gate.set()
        assert sorted(answer.result().status_code for answer in answers) == [200, 200, 503]
    assert served.segment(image_bytes()).status_code == 200
    served.assert_idle()


def test_a_body_is_in_memory_once() -> None:
    left = [True, True, True, False]

    async def receive() -> Message:
        return {"type": "http.request", "body": bytes(bytearray(1_000_000)), "more_body": left.pop(0)}

    async def held() -> int:
        before, _ = tracemalloc.get_traced_memory()
        bodies = body.Bodies(8_000_000)
        async with bodies.read(Request({"type": "http", "headers": []}, receive)) as content:
            assert len(content) == bodies.held == 4_000_000
            return tracemalloc.get_traced_memory()[0] - before

    tracemalloc.start()
    try:
        assert asyncio.run(held()) < 6_000_000, "the body and at most one part of it"
    finally:
        tracemalloc.stop()
