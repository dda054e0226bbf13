"""`POST /v1/segment` and its neighbours over real HTTP: answers, formats, limits, bad input."""

import base64
import io
import socket
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image

from adapters.inference.palette import colour_mask, overlay
from adapters.inference.segment import segment_image
from daemon.serving.api.answers import class_infos
from tests.daemon.serving.serving_world import (
    CLASSES,
    HEIGHT,
    WIDTH,
    Served,
    World,
    image_bytes,
    mask_of,
    picture,
    running,
    settings_for,
    wait_until,
)
from tests.storage.media.test_bounded import many_scans


def expected(world: World, height: int = HEIGHT, width: int = WIDTH, seed: int = 0) -> np.ndarray:
    return segment_image(world.networks[1], picture(height, width, seed), (HEIGHT, WIDTH))


def huge_png(width: int, height: int) -> bytes:
    """A PNG whose header promises width x height pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    assert set(response.json()) == {"code", "message"} and response.json()["code"] == code
    assert len(response.json()["message"]) > 10


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (150, 200), (33, 17), (1, 1), (1, 700), (700, 1)])
def test_the_mask_has_the_size_of_the_image(shared_world: World, shared: Served, size: tuple[int, int]) -> None:
    response = shared.segment(image_bytes(*size))
    assert response.status_code == 200 and response.headers["content-type"] == "image/png"
    assert response.headers["X-Checkpoint-Version"] == "1"
    assert shared.client.get("/v1/serving").json()["sha256"].startswith(response.headers["X-Checkpoint-Hash"])
    mask = mask_of(response)
    assert mask.shape == size and mask.dtype == np.uint8
    np.testing.assert_array_equal(mask, expected(shared_world, *size))


def test_formats(shared_world: World, shared: Served) -> None:
    image = image_bytes()
    labels, classes = expected(shared_world), class_infos(shared_world.registry.manifest(1))
    np.testing.assert_array_equal(mask_of(shared.segment(image, format="index")), labels)
    np.testing.assert_array_equal(mask_of(shared.segment(image, format="color")), colour_mask(labels, classes))
    np.testing.assert_array_equal(mask_of(shared.segment(image, format="overlay")), overlay(picture(), labels, classes))
    for response in (
        shared.segment(image, format="json"),
        shared.client.post("/v1/segment", content=image, headers={"Accept": "application/json"}),
    ):
        summary = response.json()
        assert (summary["version"], summary["height"], summary["width"]) == (1, HEIGHT, WIDTH)
        assert [row["pixels"] for row in summary["classes"]] == np.bincount(labels.ravel(), minlength=5).tolist()
        assert sum(row["share"] for row in summary["classes"]) == pytest.approx(1.0)
        inside = np.asarray(Image.open(io.BytesIO(base64.b64decode(summary["mask_png"]))))
        np.testing.assert_array_equal(inside, labels)
    assert_refused(shared.segment(image, format="gif"), 400, "unknown_format")


@pytest.mark.parametrize(
    ("query", "accept", "kind"),
    [
        ({}, "", "image/png"),
        ({}, "text/html,application/xml;q=0.9,*/*;q=0.8", "image/png"),
        ({}, "image/jpeg", "image/png"),
        ({}, "Application/JSON; charset=utf-8", "application/json"),
        ({"format": "index"}, "application/json", "image/png"),
        ({"format": "json"}, "image/png", "application/json"),
    ],
)
def test_accept_asks_for_json_or_nothing_and_the_query_goes_first(
    shared: Served, query: dict[str, str], accept: str, kind: str
) -> None:
    answer = shared.client.post("/v1/segment", content=image_bytes(), params=query, headers={"Accept": accept})
    assert (answer.status_code, answer.headers["content-type"]) == (200, kind)


def test_multipart(shared_world: World, shared: Served) -> None:
    response = shared.client.post("/v1/segment", files={"image": ("street.png", image_bytes(), "image/png")})
    np.testing.assert_array_equal(mask_of(response), expected(shared_world))
    large = shared.client.post("/v1/segment", files={"image": ("b.bmp", image_bytes(700, 700, kind="BMP"))})
    assert large.status_code == 200, "more than a megabyte"
    assert_refused(shared.client.post("/v1/segment", files={"other": ("a.png", image_bytes())}), 400, "image_missing")
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    for content in (b"", b"nonsense", b'--x\r\nContent-Disposition: form-data; name="image"\r\n\r\nabc'):
        broken = shared.client.post("/v1/segment", content=content, headers=headers)
        assert_refused(broken, 400, "multipart_invalid")
    no_boundary = shared.client.post("/v1/segment", content=b"x", headers={"Content-Type": "multipart/form-data"})
    assert_refused(no_boundary, 400, "multipart_invalid")


def test_kinds_of_images(shared: Served) -> None:
    grey = io.BytesIO()
    Image.fromarray(picture()[..., 0]).save(grey, "PNG")
    for content in (image_bytes(kind="JPEG"), image_bytes(kind="WEBP"), image_bytes(kind="BMP"), grey.getvalue()):
        assert mask_of(shared.segment(content)).shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("content", "status", "code"),
    [
        (b"", 400, "empty"),
        (b"this is not an image", 415, "not_an_image"),
        (b'{"image": 1}', 415, "not_an_image"),
        (image_bytes()[:-200], 422, "truncated"),
        (image_bytes()[:20], 422, "truncated"),
        (huge_png(50_000, 50_000), 413, "too_many_pixels"),
        (huge_png(2**31 - 1, 2**31 - 1), 413, "too_many_pixels"),
        (huge_png(0, 10), 415, "not_an_image"),
    ],
    ids=["empty", "text", "json", "cut_off", "header_only", "50000x50000", "2^31x2^31", "0x10"],
)
def test_bad_images_are_refused_with_a_reason(shared: Served, content: bytes, status: int, code: str) -> None:
    assert_refused(shared.segment(content), status, code)
    assert shared.segment(image_bytes()).status_code == 200
    assert shared.metric("mfmd_requests_refused_total", reason=code) >= 1


def test_a_strip_longer_than_any_camera_gives_is_refused(shared: Served) -> None:
    stream = io.BytesIO()
    Image.new("L", (70_000, 1)).save(stream, "PNG")
    assert_refused(shared.segment(stream.getvalue()), 413, "side_too_long")


def test_unknown_paths_and_methods(shared: Served) -> None:
    assert_refused(shared.client.get("/v1/nothing"), 404, "not_found")
    assert_refused(shared.client.get("/v1/segment"), 405, "method_not_allowed")
    compressed = shared.client.post("/v1/segment", content=b"x", headers={"Content-Encoding": "gzip"})
    assert_refused(compressed, 415, "unsupported_encoding")


def test_head_is_answered_like_get_without_the_body(shared: Served) -> None:
    for path in ("/healthz", "/readyz", "/v1/classes", "/v2/health/ready", "/metrics", "/nope"):
        asked, looked = shared.client.get(path), shared.client.head(path)
        assert (looked.status_code, looked.content) == (asked.status_code, b""), path
        assert looked.headers["content-type"] == asked.headers["content-type"]
    assert shared.client.head("/v1/segment").status_code == 405
    assert shared.segment(image_bytes()).status_code == 200, "and the connection goes on"


@pytest.fixture
def small_limit(world: World) -> Iterator[Served]:
    """A plane that takes bodies of 20 kB."""
    world.add(1)
    with running(world.settings(max_body_bytes=20_000)) as plane:
        plane.wait_for(1)
        yield plane


def test_the_body_limit_holds_for_announced_and_chunked_bodies(small_limit: Served) -> None:
    def chunks(count: int) -> Iterator[bytes]:
        for _ in range(count):
            yield b"\0" * 1000

    assert len(image_bytes()) < 20_000 and small_limit.segment(image_bytes()).status_code == 200
    assert_refused(small_limit.segment(b"\0" * 20_001), 413, "body_too_large")
    assert_refused(small_limit.segment(b"\0" * 5_000_000), 413, "body_too_large")
    assert_refused(small_limit.client.post("/v1/segment", content=chunks(21)), 413, "body_too_large")
    assert_refused(small_limit.client.post("/v1/segment", content=chunks(5000)), 413, "body_too_large")
    assert_refused(small_limit.client.post("/v1/segment", content=chunks(20)), 415, "not_an_image")
    infer = small_limit.client.post("/v2/models/segmentation/infer", content=chunks(30))
    assert infer.status_code == 413 and infer.json()["code"] == "body_too_large"


def test_an_endless_upload_is_answered_while_it_still_sends(small_limit: Served) -> None:
    with socket.create_connection((small_limit.client.base_url.host, small_limit.client.base_url.port)) as wire:
        wire.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        wire.settimeout(0.001)
        answer = b""
        for _ in range(20_000):  # 20 MB, a thousand times the limit; the end of the body is never sent
            wire.settimeout(20)
            wire.sendall(b"400\r\n" + b"\0" * 1024 + b"\r\n")
            wire.settimeout(0.0)
            try:
                answer += wire.recv(4096)
            except BlockingIOError:
                continue
            break
        assert b" 413 " in answer.split(b"\r\n")[0]
    assert small_limit.metric("mfmd_requests_total", code="413", endpoint="/v1/segment") == 1


def test_a_client_that_leaves_is_no_server_error(shared: Served) -> None:
    with socket.create_connection((shared.client.base_url.host, shared.client.base_url.port)) as wire:
        wire.sendall(b"POST /v1/segment HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\nabc")
    left = "mfmd_requests_refused_total", {"reason": "client_disconnected"}
    wait_until(lambda: shared.metric(left[0], **left[1]) == 1, "the leave is counted")
    assert shared.segment(image_bytes()).status_code == 200


def test_a_full_queue_answers_503_with_retry_after(world: World) -> None:
    world.add(1)
    with running(world.settings(queue_images=2, max_batch_images=1, max_delay_ms=0.0)) as served:
        served.wait_for(1)
        gate = threading.Event()
        live = served.plane.slots.live
        assert live is not None
        handle = live.forward.network.register_forward_pre_hook(lambda *_: gate.wait(30) and None)
        answers: list[httpx.Response] = []
        clients = [threading.Thread(target=lambda: answers.append(served.segment(image_bytes()))) for _ in range(3)]
        for waiting, client in enumerate(clients):
            client.start()  # the first is at work, two wait
            wait_until(lambda: live.holds >= 2 * waiting + 2, "the request is queued")  # noqa: B023 - waited for here
        wait_until(lambda: served.plane.batcher.depth == 2, "the queue is full")
        refused = served.segment(image_bytes())
        assert_refused(refused, 503, "queue_full")
        assert int(refused.headers["Retry-After"]) >= 1
        assert served.client.get("/v1/serving").json()["queue_images"] == 2, "status answers while inference is busy"
        assert served.metric("mfmd_queue_depth") == 2
        gate.set()
        handle.remove()
        for client in clients:
            client.join(30)
        assert [answer.status_code for answer in answers] == [200, 200, 200]
        assert served.segment(image_bytes()).status_code == 200


def test_before_any_version_the_server_runs_and_says_so(world: World) -> None:
    with running(world.settings()) as served:
        assert served.client.get("/healthz").status_code == 200
        assert served.client.get("/readyz").status_code == 503
        refused = served.segment(image_bytes())
        assert_refused(refused, 503, "not_ready")
        assert "Retry-After" in refused.headers and "X-Checkpoint-Version" not in refused.headers
        assert served.client.get("/v1/classes").json()["classes"][2]["name"] == CLASSES[2]["name"]
        status = served.client.get("/v1/serving").json()
        assert (status["ready"], status["version"], status["wanted"], status["resident"]) == (False, None, None, [])
        world.add(1)
        served.wait_for(1)
        assert served.client.get("/readyz").json() == {"ready": True}
        assert served.segment(image_bytes()).status_code == 200


def test_a_stopping_server_is_not_ready_but_answers(served: Served) -> None:
    served.plane.draining = True
    for path in ("/readyz", "/v2/health/ready", "/v2/models/segmentation/ready"):
        assert served.client.get(path).status_code == 503
    assert served.client.get("/v2/health/live").status_code == served.client.get("/healthz").status_code == 200
    assert served.segment(image_bytes()).status_code == 200


def test_classes_and_status(world: World, served: Served) -> None:
    answer = served.client.get("/v1/classes")
    assert answer.headers["X-Checkpoint-Version"] == "1"
    assert answer.json() == {
        "version": 1,
        "classes": [{"index": index, **entry} for index, entry in enumerate(CLASSES)],
    }
    corrupt = world.add(2, promote=False)
    world.corrupt(corrupt)
    path = world.registry.root / "refs" / "serving"
    path.write_text(path.read_text().replace('"version": 1', f'"version": {corrupt}'))
    failure = served.wait_for_failure(corrupt)
    assert failure["code"] == "checkpoint_corrupt" and "SHA-256" in str(failure["reason"])
    status = served.client.get("/v1/serving").json()
    assert (status["ready"], status["version"], status["wanted"]) == (True, 1, corrupt)
    assert served.segment(image_bytes()).headers["X-Checkpoint-Version"] == "1"
    assert served.metric("mfmd_swap_total", result="failed") >= 1


def test_openapi_describes_the_routes(shared: Served) -> None:
    paths = shared.client.get("/openapi.json").json()["paths"]
    assert {"/v1/segment", "/v1/classes", "/v1/serving", "/v2/models/{model}/infer", "/metrics"} <= set(paths)


def test_a_failure_of_the_network_is_a_500_that_explains_itself(shared: Served) -> None:
    live = shared.plane.slots.live
    assert live is not None

    def fail(*_: object) -> None:
        raise RuntimeError("device lost")

    handle = live.forward.network.register_forward_pre_hook(fail)
    response = shared.segment(image_bytes())
    assert (response.status_code, response.json()["code"]) == (500, "internal")
    assert response.headers["X-Checkpoint-Version"] == "1", "every answer names its version"
    handle.remove()
    assert shared.segment(image_bytes()).status_code == 200
    shared.assert_idle()


def test_an_image_that_costs_too_much_is_refused_while_others_are_answered(world: World) -> None:
    version = world.add(1)
    watch = {"folder": world.layout.root / "drop", "advanced": {"decode_seconds": 1.0}, "max_pixels": 10_000_000}
    with (
        running(settings_for(world.layout.root, watch=watch, serving={"port": 0})) as served,
        ThreadPoolExecutor(3) as clients,
    ):
        served.wait_for(version)
        costly = [clients.submit(served.segment, many_scans(3000, 3000)) for _ in range(3)]
        while not any(answer.done() for answer in costly):
            assert served.segment(image_bytes()).status_code == 200
        for answer in costly:
            assert_refused(answer.result(), 413, "too_costly")
        assert served.segment(image_bytes(kind="WEBP")).status_code == 200
