"""Images of any size, resized or in sliding windows, in any order: batched answers equal those given alone."""

from collections.abc import Iterator

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapters.inference.segment import segment_fitted, segment_image
from adapters.inference.windows import Window
from daemon.serving.plane import InferencePlane
from tests.daemon.serving.serving_world import (
    HEIGHT,
    WIDTH,
    World,
    image_bytes,
    mask_of,
    picture,
    running,
    served_network,
)

OVERLAP = 0.5
SIZES = st.lists(st.tuples(st.integers(1, 200), st.integers(1, 200)), min_size=2, max_size=8)
WINDOW = Window(HEIGHT, WIDTH, OVERLAP)


def alone(kind: str, pixels: np.ndarray) -> np.ndarray:
    """The answer of a network that saw nothing else."""
    if kind == "resize":
        return segment_image(served_network(1), pixels, (HEIGHT, WIDTH))
    [labels] = segment_fitted(served_network(1), [WINDOW.fit(pixels)], [pixels.shape[:2]], WINDOW.logits)
    return labels.numpy()


@pytest.fixture(scope="module", params=["resize", "slide"])
def plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[InferencePlane]:
    """A plane that waits long enough for images to share batches."""
    world = World(tmp_path_factory.mktemp(request.param))
    version = world.add(1)
    choices = {"window": request.param, "window_overlap": OVERLAP, "max_delay_ms": 2.0, "max_batch_images": 3}
    made = InferencePlane(world.settings(**choices))
    made.swapper.serve(version)
    made.batcher.start()
    yield made
    made.stop()


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sizes=SIZES, data=st.data())
def test_batched_answers_equal_those_given_alone(
    plane: InferencePlane, sizes: list[tuple[int, int]], data: st.DataObject
) -> None:
    order = data.draw(st.permutations([*sizes, *sizes[:2]]))  # some twice, so that images do share batches
    pictures = [picture(*size, seed) for seed, size in enumerate(order)]
    with plane.slots.lease() as resident:
        waiting = plane.submit(resident, pictures)
        answers = [answer.result(60) for answer in waiting]
    for pixels, labels in zip(pictures, answers, strict=True):
        assert labels.shape == pixels.shape[:2]
        np.testing.assert_array_equal(labels, alone(plane.settings.serving.advanced.window, pixels))


def test_sliding_windows_over_http(world: World) -> None:
    world.add(1)
    with running(world.settings(window="slide", window_overlap=OVERLAP)) as served:
        served.wait_for(1)
        for size in [(HEIGHT, WIDTH), (150, 200), (33, 170), (300, 40), (1, 700), (1, 1)]:
            mask = mask_of(served.segment(image_bytes(*size)))
            np.testing.assert_array_equal(mask, alone("slide", picture(*size)))
        pixels = np.stack([picture(50, 120, seed) for seed in range(3)])
        tensor = {"name": "images", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.ravel().tolist()}
        answer: httpx.Response = served.client.post("/v2/models/segmentation/infer", json={"inputs": [tensor]})
        labels = np.array(answer.json()["outputs"][0]["data"], np.uint8).reshape(3, 50, 120)
        np.testing.assert_array_equal(labels, np.stack([alone("slide", one) for one in pixels]))
        warm = served.plane.batcher.served_sizes
        assert (HEIGHT, WIDTH) in warm and all(size[0] <= HEIGHT and size[1] <= WIDTH for size in warm), "of windows"
