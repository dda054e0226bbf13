"""The inference plane as NVIDIA's own client, which nobody here wrote, sees it."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

from adapters.inference.segment import segment_image
from tests.daemon.serving.serving_world import HEIGHT, WIDTH, Served, World, picture, running

MODEL = "segmentation"
PIXELS = np.stack([picture(40, 60, seed) for seed in range(3)])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Versions 1 and 2; 2 serves."""
    made = World(tmp_path_factory.mktemp("triton"))
    made.add(1)
    made.add(2)
    return made


@pytest.fixture(scope="module")
def served(world: World) -> Iterator[Served]:
    """A plane that was told to serve 1 and then 2, so both are in memory."""
    world.registry.promote(1, by="test", reason="test")
    with running(world.settings()) as plane:
        plane.wait_for(1)
        world.registry.promote(2, by="test", reason="test")
        plane.wait_for(2)
        yield plane


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[Any]:
    """Triton's client."""
    with triton.InferenceServerClient(served.client.base_url.netloc.decode()) as made:
        yield made


def expected(world: World, version: int) -> np.ndarray:
    return np.stack([segment_image(world.networks[version], one, (HEIGHT, WIDTH)) for one in PIXELS])


def infer(client: Any, *, binary_in: bool, binary_out: bool | None, **more: Any) -> Any:
    image = triton.InferInput("images", list(PIXELS.shape), "UINT8")
    image.set_data_from_numpy(PIXELS, binary_data=binary_in)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("labels", binary_data=binary_out)]
    return client.infer(MODEL, [image], outputs=outputs, **more)


def test_health(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    assert client.is_model_ready(MODEL) and client.is_model_ready(MODEL, "1") and client.is_model_ready(MODEL, "2")
    assert not client.is_model_ready("nobody") and not client.is_model_ready(MODEL, "9")


def test_metadata_and_configuration(world: World, client: Any) -> None:
    server = client.get_server_metadata()
    assert server["name"] == "mfmd" and {"binary_tensor_data", "model_repository"} <= set(server["extensions"])
    model = client.get_model_metadata(MODEL)
    assert model["versions"] == ["2", "1"] and model["parameters"]["version"] == 2
    for version in (1, 2):
        about = client.get_model_metadata(MODEL, str(version))["parameters"]
        manifest = world.registry.manifest(version)
        assert (about["version"], about["created"]) == (version, manifest.created)
        assert about["sha256"] in {file.sha256 for file in manifest.files.values()}
        assert about["classes"] == [entry["name"] for entry in manifest.classes]
    config = client.get_model_config(MODEL)
    assert config["input"][0]["data_type"] == "TYPE_UINT8" and config["max_batch_size"] == 0


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_infer(world: World, client: Any, binary_in: bool, binary_out: bool | None) -> None:
    answer = infer(client, binary_in=binary_in, binary_out=binary_out, request_id="42", priority=1, timeout=1_000_000)
    response = answer.get_response()
    assert (response["id"], response["model_name"], response["model_version"]) == ("42", MODEL, "2")
    assert ("data" in response["outputs"][0]) is (binary_out is False)
    np.testing.assert_array_equal(answer.as_numpy("labels"), expected(world, 2))


@pytest.mark.parametrize("version", [1, 2])
def test_infer_of_one_version(world: World, client: Any, version: int) -> None:
    answer = infer(client, binary_in=True, binary_out=True, model_version=str(version))
    assert answer.get_response()["model_version"] == str(version)
    np.testing.assert_array_equal(answer.as_numpy("labels"), expected(world, version))


def test_concurrent_requests(world: World, served: Served) -> None:
    address = served.client.base_url.netloc.decode()
    with triton.InferenceServerClient(address, concurrency=4) as client:
        image = triton.InferInput("images", list(PIXELS.shape), "UINT8")
        image.set_data_from_numpy(PIXELS)
        waiting = [client.async_infer(MODEL, [image]) for _ in range(12)]
        for request in waiting:
            np.testing.assert_array_equal(request.get_result().as_numpy("labels"), expected(world, 2))


def test_errors_are_messages(client: Any) -> None:
    image = triton.InferInput("pixels", list(PIXELS.shape), "UINT8")
    image.set_data_from_numpy(PIXELS)
    with pytest.raises(InferenceServerException, match="expected one input named 'images'"):
        client.infer(MODEL, [image])
    with pytest.raises(InferenceServerException, match="there is no model 'nobody'"):
        client.get_model_metadata("nobody")
    with pytest.raises(InferenceServerException, match="classification is not offered"):
        outputs = [triton.InferRequestedOutput("labels", class_count=3)]
        client.infer(MODEL, [image_input()], outputs=outputs)


def image_input() -> Any:
    image = triton.InferInput("images", list(PIXELS.shape), "UINT8")
    image.set_data_from_numpy(PIXELS)
    return image


def states(client: Any) -> dict[str, tuple[str, str]]:
    return {entry["version"]: (entry["state"], entry["reason"]) for entry in client.get_model_repository_index()}


def test_the_repository_is_read_only(served: Served, client: Any) -> None:
    assert states(client) == {"1": ("READY", ""), "2": ("READY", "")}
    for change in (client.load_model, client.unload_model):
        with pytest.raises(InferenceServerException, match="the registry decides which version serves"):
            change(MODEL)
    assert client.is_server_ready() and client.is_model_ready(MODEL, "1")


def test_the_index_says_why_a_version_does_not_serve(tmp_path: Any) -> None:
    world = World(tmp_path)
    world.add(1)
    with running(world.settings()) as served:
        served.wait_for(1)
        bad = world.add(2, promote=False)
        world.corrupt(bad)
        world.point_at(bad)
        served.wait_for_failure(bad)
        with triton.InferenceServerClient(served.client.base_url.netloc.decode()) as client:
            assert client.is_server_ready()
            entries = states(client)
            assert entries["1"] == ("READY", "") and "SHA-256" in entries["2"][1]
