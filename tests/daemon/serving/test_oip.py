"""Open Inference Protocol v2: health, metadata, infer as JSON and as binary tensors, and all that can be wrong."""

import json
import tracemalloc
from typing import Any

import httpx
import numpy as np
import pytest

from adapters.inference.segment import segment_image
from daemon.serving.errors import ApiError
from daemon.serving.oip.tensors import parse_infer
from tests.daemon.serving.serving_world import HEIGHT, WIDTH, Served, World, picture, running, wait_until

INFER = "/v2/models/segmentation/infer"


def images(batch: int = 2, height: int = 12, width: int = 20) -> np.ndarray:
    return np.stack([picture(height, width, seed) for seed in range(batch)])


def request_for(pixels: np.ndarray, **changes: Any) -> dict[str, Any]:
    tensor = {"name": "images", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.ravel().tolist()}
    return {"id": "42", "inputs": [tensor | changes]}


def expected(world: World, version: int, pixels: np.ndarray) -> np.ndarray:
    return np.stack([segment_image(world.networks[version], one, (HEIGHT, WIDTH)) for one in pixels])


def labels_of(answer: dict[str, Any]) -> np.ndarray:
    [output] = answer["outputs"]
    assert (output["name"], output["datatype"]) == ("labels", "UINT8")
    return np.array(output["data"], np.uint8).reshape(output["shape"])


def assert_refused(response: httpx.Response, status: int, code: str) -> None:
    assert response.status_code == status, response.text
    error = response.json()
    assert error["code"] == code and error["message"] == error["error"]


def test_server_and_model_metadata(shared: Served) -> None:
    get = shared.client.get
    assert get("/v2").json()["name"] == "mfmd" and "binary_tensor_data" in get("/v2").json()["extensions"]
    assert get("/v2/health/live").json() == {"live": True}
    assert get("/v2/health/ready").json() == {"ready": True}
    model = get("/v2/models/segmentation").json()
    assert model["name"] == "segmentation" and model["versions"] == ["1"]
    assert model["inputs"] == [{"name": "images", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert model["outputs"] == [{"name": "labels", "datatype": "UINT8", "shape": [-1, -1, -1]}]
    assert get("/v2/models/segmentation/versions/1").json() == model
    for path in ("/v2/models/segmentation/ready", "/v2/models/segmentation/versions/1/ready"):
        assert get(path).json() == {"name": "segmentation", "ready": True}


@pytest.mark.parametrize("tail", ["", "/ready", "/infer"])
def test_unknown_models_and_versions_are_404(shared: Served, tail: str) -> None:
    ask = shared.client.post if tail == "/infer" else shared.client.get
    assert_refused(ask(f"/v2/models/nobody{tail}"), 404, "unknown_model")
    for version in ("2", "latest", "-1", "01", "9" * 5000):
        assert_refused(ask(f"/v2/models/segmentation/versions/{version}{tail}"), 404, "version_not_loaded")


def test_before_any_version_inference_is_503_and_live_is_200(world: World) -> None:
    with running(world.settings()) as served:
        get = served.client.get
        assert get("/v2/health/live").status_code == 200
        assert (get("/v2/health/ready").status_code, get("/v2/health/ready").json()) == (503, {"ready": False})
        assert get("/v2/models/segmentation/ready").status_code == 503
        assert get("/v2/models/segmentation").json()["versions"] == []
        assert_refused(served.client.post(INFER, json=request_for(images())), 503, "not_ready")


@pytest.mark.parametrize("shape", [(2, 12, 20), (1, HEIGHT, WIDTH), (5, 7, 7)])
def test_infer_json(shared_world: World, shared: Served, shape: tuple[int, int, int]) -> None:
    pixels = images(*shape)
    response = shared.client.post(INFER, json=request_for(pixels))
    answer = response.json()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("segmentation", "1", "42")
    assert response.headers["X-Checkpoint-Version"] == "1"
    np.testing.assert_array_equal(labels_of(answer), expected(shared_world, 1, pixels))
    nested = shared.client.post(INFER, json=request_for(pixels, data=pixels.tolist()))
    assert labels_of(nested.json()).tolist() == labels_of(answer).tolist()


def test_infer_binary(shared_world: World, shared: Served) -> None:
    pixels = images()
    tensor = {"name": "images", "shape": list(pixels.shape), "datatype": "UINT8"}
    tensor["parameters"] = {"binary_data_size": pixels.nbytes}
    head = json.dumps({"inputs": [tensor], "parameters": {"binary_data_output": True}}).encode()
    headers = {"Inference-Header-Content-Length": str(len(head))}
    response = shared.client.post(INFER, content=head + pixels.tobytes(), headers=headers)
    length = int(response.headers["Inference-Header-Content-Length"])
    answer = json.loads(response.content[:length])
    [output] = answer["outputs"]
    assert output["parameters"] == {"binary_data_size": pixels[..., 0].size} and "id" not in answer
    labels = np.frombuffer(response.content[length:], np.uint8).reshape(output["shape"])
    np.testing.assert_array_equal(labels, expected(shared_world, 1, pixels))
    both = head.replace(b'"UINT8"', b'"UINT8", "data": [1]')
    wrong = [
        ({"Inference-Header-Content-Length": "9" * 30}, head + pixels.tobytes(), "wrong_header_length"),
        ({"Inference-Header-Content-Length": "-1"}, head + pixels.tobytes(), "wrong_header_length"),
        (headers, head + pixels.tobytes()[:-1], "wrong_data"),
        ({}, head, "wrong_data"),
        ({"Inference-Header-Content-Length": str(len(both))}, both + pixels.tobytes(), "wrong_data"),
    ]
    for bad_headers, content, code in wrong:
        assert_refused(shared.client.post(INFER, content=content, headers=bad_headers), 400, code)


def test_a_named_output_chooses_its_own_form(shared_world: World, shared: Served) -> None:
    pixels = images(1)
    request = request_for(pixels) | {"outputs": [{"name": "labels", "parameters": {"binary_data": False}}]}
    request["parameters"] = {"binary_data_output": True}
    answer = shared.client.post(INFER, json=request).json()
    np.testing.assert_array_equal(labels_of(answer), expected(shared_world, 1, pixels))


def test_two_versions_can_be_compared_by_number(world: World, served: Served) -> None:
    second = world.add(2)
    served.wait_for(second)
    pixels = images()
    for version in (1, second):
        response = served.client.post(f"/v2/models/segmentation/versions/{version}/infer", json=request_for(pixels))
        assert response.json()["model_version"] == response.headers["X-Checkpoint-Version"] == str(version)
        np.testing.assert_array_equal(labels_of(response.json()), expected(world, version, pixels))
    assert served.client.get("/v2/models/segmentation").json()["versions"] == ["2", "1"]
    third = world.add(3)
    served.wait_for(third)
    gone = served.client.post("/v2/models/segmentation/versions/1/infer", json=request_for(pixels))
    assert_refused(gone, 404, "version_not_loaded")


PIXELS = images(1, 2, 2)


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe", "invalid_json"),
        (b'{"x": ' + b"[" * 100_000, "invalid_json"),
        (b"[" * 100_000, "invalid_request"),
        (b"[1" + b"0" * 10_000 + b"]", "invalid_request"),
        (b"[]", "invalid_request"),
        (b"{}", "invalid_request"),
        ({"inputs": []}, "wrong_input_name"),
        ({"inputs": 3}, "invalid_request"),
        (request_for(PIXELS) | {"id": 7}, "invalid_request"),
        (request_for(PIXELS) | {"id": "\ud800"}, "invalid_json"),
        (request_for(PIXELS) | {"id": "x" * 5000}, "invalid_request"),
        (request_for(PIXELS, name="image"), "wrong_input_name"),
        ({"inputs": request_for(PIXELS)["inputs"] * 2}, "wrong_input_name"),
        (request_for(PIXELS) | {"outputs": [{"name": "logits"}]}, "wrong_output_name"),
        (request_for(PIXELS, datatype="FP32"), "wrong_datatype"),
        (request_for(PIXELS, shape=[2, 2, 3]), "wrong_shape"),
        (request_for(PIXELS, shape=[1, 3, 2, 2]), "wrong_shape"),
        (request_for(PIXELS, shape=[0, 2, 2, 3], data=[]), "wrong_shape"),
        (request_for(PIXELS, shape=[-1, -2, 2, 3]), "wrong_shape"),
        (request_for(PIXELS, shape=[]), "wrong_shape"),
        (request_for(PIXELS, shape="1,2,2,3"), "invalid_request"),
        (json.dumps(request_for(PIXELS, shape=["a" + "é" * 60]), ensure_ascii=False).encode(), "invalid_request"),
        (json.dumps(request_for(PIXELS, shape=["é"]), ensure_ascii=False).encode("latin-1"), "invalid_request"),
        (request_for(PIXELS, shape=[1, 2, 3, 3]), "wrong_data"),
        (request_for(PIXELS, data=[0] * 11), "wrong_data"),
        (request_for(PIXELS, data=[0] * 11 + [256]), "wrong_data"),
        (request_for(PIXELS, data=[0] * 11 + [-1]), "wrong_data"),
        (request_for(PIXELS, data=[0] * 11 + [0.5]), "wrong_data"),
        (request_for(PIXELS, data=[0] * 11 + [10**30]), "wrong_data"),
        (request_for(PIXELS, data=[0] * 11 + ["0"]), "wrong_data"),
        (request_for(PIXELS, data=[0] * 11 + [None]), "wrong_data"),
        (request_for(PIXELS, data=[[0] * 11, [0]]), "wrong_data"),
        (request_for(PIXELS, data=[True] * 12), "wrong_data"),
        (request_for(PIXELS, data=[True] + [0] * 11), "wrong_data"),
        (request_for(PIXELS, data=[[[[0] * 3] * 2] * 2, 0]), "wrong_data"),
        (request_for(PIXELS, data=[[0] * 6] * 2), "wrong_data"),
        (request_for(PIXELS, data=None), "wrong_data"),
        (request_for(PIXELS, data="AAAA"), "wrong_data"),
        (request_for(PIXELS, data={"a": 1}), "wrong_data"),
        (request_for(PIXELS, parameters={"binary_data_size": 12}), "wrong_data"),
        (request_for(PIXELS, parameters={"binary_data_size": [1] * 99}), "invalid_request"),
        (request_for(PIXELS, parameters={"binary_data_size": True}), "invalid_request"),
        (request_for(PIXELS, shape=[1] * 300), "wrong_shape"),
    ],
    ids=lambda value: str(value)[:60],
)
def test_wrong_requests_are_400_with_a_reason(bad_input_plane: Served, body: bytes | dict[str, Any], code: str) -> None:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    assert_refused(bad_input_plane.client.post(INFER, content=content), 400, code)


@pytest.fixture(scope="module")
def bad_input_plane(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """One plane for all wrong requests: each must leave it as it was."""
    world = World(tmp_path_factory.mktemp("oip"))
    world.add(1)
    with running(world.settings(max_pixels=10_000, queue_images=8)) as served:
        served.wait_for(1)
        yield served
        answer = served.client.post(INFER, json=request_for(images()))
        assert answer.status_code == 200, "the plane suffered from bad input"
        served.assert_idle()


def test_too_much_is_413(bad_input_plane: Served) -> None:
    post = bad_input_plane.client.post
    assert_refused(post(INFER, json=request_for(PIXELS, shape=[1, 101, 100, 3])), 413, "too_many_pixels")
    assert_refused(post(INFER, json=request_for(PIXELS, shape=[1, 2**40, 2**40, 3])), 413, "too_many_pixels")
    assert_refused(post(INFER, json=request_for(images(9, 2, 2))), 413, "batch_too_large")


def test_swaps_keep_requests_by_number_answerable(world: World, served: Served) -> None:
    """A version asked for by number is the one that answers, whichever serves by then."""

    def ask(version: int) -> httpx.Response:
        path = f"/v2/models/segmentation/versions/{version}/infer"
        return served.client.post(path, json=request_for(PIXELS))

    second = world.add(2)
    wait_until(lambda: ask(second).status_code == 200, "the new version answers by number")
    world.registry.roll_back(to=None, by="test", reason="")
    served.wait_for(1)
    assert ask(second).headers["X-Checkpoint-Version"] == str(second)
    assert ask(1).headers["X-Checkpoint-Version"] == "1"


def test_a_shape_of_too_many_pixels_is_413(shared: Served) -> None:
    side = "1" + "0" * 18  # the number of pixels fits no machine word
    tensor = f'{{"name": "images", "datatype": "UINT8", "shape": [{side}, {side}, {side}, 3], "data": [1]}}'
    answer = shared.client.post(INFER, content=f'{{"inputs": [{tensor}]}}')
    assert_refused(answer, 413, "too_many_pixels")


def test_one_long_text_among_the_values_costs_no_memory() -> None:
    # As one array, every value would have the room of the longest text: 4 bytes x 1,000 x 20,000 = 80 MB.
    body = json.dumps(request_for(images(1, 1, 1), shape=[1, 1, 6667, 3], data=["x" * 1000] + [0] * 20_000)).encode()
    tracemalloc.start()
    try:
        with pytest.raises(ApiError, match="integers"):
            parse_infer(body, None, 10_000, 64)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8_000_000, f"{peak} bytes for a body of {len(body)}"
