"""Whatever is sent: no answer is 5xx, every answer is as the OpenAPI page says, and memory does not grow."""

import gc
import io
import tracemalloc
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import httpx
import numpy as np
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Unsatisfiable
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.daemon.serving.serving_world import Served, World, image_bytes, picture, running

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
FUZZ = settings(
    max_examples=6,
    deadline=None,
    derandomize=True,
    database=None,
    phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # what Pillow says about damaged files
KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
ORIGINALS = [image_bytes(24, 36, seed, kind) for seed, kind in enumerate(KINDS)]
LEAK_BYTES = 150_000
"""Growth (bytes) beyond which something of each of 100 requests was kept; one decoded image has 2,592 bytes."""
LARGE_LEAK_BYTES = 20_000_000
"""Growth (bytes) of the process beyond which something of each of 20 large images was kept, 1.5 MB each."""


@pytest.fixture(scope="module")
def plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    """A plane with small limits, so that they are met as well; as good as new afterwards."""
    world = World(tmp_path_factory.mktemp("fuzz"))
    world.add(1)
    with running(world.settings(max_pixels=40_000, max_body_bytes=100_000, queue_images=16)) as served:
        served.wait_for(1)
        yield served
        assert served.segment(image_bytes()).status_code == 200
        served.assert_idle()
        assert served.plane.bodies.held == 0 and served.plane.batcher.depth == 0


@pytest.mark.parametrize(("mode", "least"), [(GenerationMode.POSITIVE, 20), (GenerationMode.NEGATIVE, 5)])
def test_every_answer_is_as_the_openapi_page_says(plane: Served, mode: GenerationMode, least: int) -> None:
    schema = schemathesis.openapi.from_url(f"{plane.client.base_url}/openapi.json")
    asked = []
    for result in schema.get_all_operations():
        operation = result.ok()

        @FUZZ
        @given(case=operation.as_strategy(generation_mode=mode))
        def fuzz(case: Any) -> None:
            case.call_and_validate(checks=CHECKS)

        with suppress(Unsatisfiable):  # `otherwise` than nothing, or than any text, does not exist
            fuzz()
            asked.append(f"{operation.method.upper()} {operation.path}")
    assert len(asked) >= least and "POST /v1/segment" in asked and "POST /v2/repository/index" in asked


def mutated(data: bytes, random: np.random.Generator) -> bytes:
    """`data` with bytes changed, cut, doubled or put elsewhere."""
    changed = bytearray(data)
    for _ in range(int(random.integers(1, 8))):
        start, end = sorted(random.integers(0, len(changed) + 1, 2).tolist())
        kind = random.integers(5)
        if kind == 0 and start < len(changed):
            changed[start] = int(random.integers(256))
        elif kind == 1:
            del changed[start : min(end, start + 16)]
        elif kind == 2:
            changed[start:start] = random.bytes(4)
        elif kind == 3:
            changed[start:start] = changed[start : min(end, start + 64)]
        elif len(changed) > 40:
            changed[: len(changed) // 2 + start // 2] = changed[: len(changed) // 2 + start // 2]
            changed[16:24] = random.bytes(8)  # where PNG and BMP keep their size
    return bytes(changed)


def send_all(plane: Served, seeds: range) -> dict[int, int]:
    """Send a mutated image for each seed, as a body or in a form; how often each status was answered."""
    counts: dict[int, int] = {}
    for seed in seeds:
        random = np.random.default_rng(seed)
        content = mutated(ORIGINALS[seed % len(ORIGINALS)], random)
        answer = ask(plane, seed, content)
        assert answer.status_code < 500, f"seed {seed}: {answer.status_code} {answer.text[:300]}"
        if answer.status_code != 200:
            assert set(answer.json()) == {"code", "message"} and answer.json()["message"]
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
    return counts


def ask(plane: Served, seed: int, content: bytes) -> httpx.Response:
    formats = ("index", "color", "overlay", "json")
    params = {"format": formats[seed % len(formats)]}
    if seed % 3:
        return plane.client.post("/v1/segment", content=content, params=params)
    return plane.client.post("/v1/segment", files={"image": ("a", content)}, params=params)


def test_mutated_images_are_answered_or_refused_and_nothing_of_them_stays(plane: Served) -> None:
    send_all(plane, range(40))  # what is made once is made now
    tracemalloc.start()
    try:
        send_all(plane, range(40, 60))
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        counts = send_all(plane, range(60, 160))
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < LEAK_BYTES, f"{grown} bytes more after 100 requests"
    assert counts[200] > 10 and sum(counts.values()) - counts[200] > 30, counts


def test_large_images_do_not_stay(shared: Served) -> None:
    image = image_bytes(700, 700, kind="JPEG")

    def resident_after(requests: int) -> float:
        for number in range(requests):
            kind = ("index", "color", "overlay", "json")[number % 4]
            assert shared.segment(image, format=kind).status_code == 200
            assert shared.segment(image[: len(image) // 2]).status_code == 422
        return shared.metric("process_resident_memory_bytes")

    before, grown = resident_after(8), list[float]()
    while not grown or (grown[-1] >= LARGE_LEAK_BYTES and len(grown) < 5):  # the allocator may still settle at first
        after = resident_after(20)
        grown.append(after - before)
        before = after
    assert grown[-1] < LARGE_LEAK_BYTES, grown


@settings(max_examples=25, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**32 - 1))
def test_mutated_forms_and_tensors_are_refused_with_a_reason(fuzzed: Served, seed: int) -> None:
    random = np.random.default_rng(seed)
    form = (
        b'--x\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n' + ORIGINALS[0] + b"\r\n--x--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    answers = [fuzzed.client.post("/v1/segment", content=mutated(form, random), headers=headers)]
    pixels = picture(3, 4)[None]
    head = b'{"inputs":[{"name":"images","shape":[1,3,4,3],"datatype":"UINT8","parameters":{"binary_data_size":36}}]}'
    path = "/v2/models/segmentation/infer"
    length = {"Inference-Header-Content-Length": str(len(head))}
    answers.append(fuzzed.client.post(path, content=mutated(head + pixels.tobytes(), random), headers=length))
    plain = b'{"id":"a","inputs":[{"name":"images","shape":[1,1,1,3],"datatype":"UINT8","data":[0,1,2]}]}'
    answers.append(fuzzed.client.post(path, content=mutated(plain, random)))
    for answer in answers:
        assert answer.status_code < 500, answer.text
        assert answer.status_code == 200 or answer.json()["message"]


@pytest.fixture(scope="module")
def fuzzed(plane: Served) -> Served:
    """The same plane, as a fixture of a module for hypothesis."""
    return plane


def test_the_originals_are_images(plane: Served) -> None:
    """So that what is refused is refused for what was changed."""
    for content in ORIGINALS:
        answer = plane.segment(content)
        assert answer.status_code == 200 and Image.open(io.BytesIO(answer.content)).size == (36, 24)
