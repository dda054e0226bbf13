"""A multi-resolution version in the inference plane: it loads, answers as `mfmd predict` does, swaps with others."""

import numpy as np
import pytest
import torch

from adapters.inference.segment import segment_image
from adapters.networks.build import build_network
from adapters.networks.multi_resolution import MultiResolutionNetwork
from tests.daemon.serving.serving_world import (
    CLASSES,
    HEIGHT,
    WIDTH,
    World,
    image_bytes,
    mask_of,
    picture,
    running,
    settings_for,
)

DETAILED = {"name": "deeplabv3plus", "encoder": "resnet_tiny", "multi_resolution": True}


def network_of(world: World) -> MultiResolutionNetwork:
    torch.manual_seed(3)
    settings = settings_for(world.root, network={"channels": 16, **DETAILED})
    network = build_network(settings.network.architecture(), len(CLASSES)).eval()
    assert isinstance(network, MultiResolutionNetwork)
    return network


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (120, 50)])
def test_it_answers_over_http_and_swaps_with_a_plain_version(world: World, size: tuple[int, int]) -> None:
    network = network_of(world)
    plain = world.add(1)
    detailed = world.add_network(network, promote=False, **DETAILED)
    with running(world.settings()) as served:
        served.wait_for(plain)
        assert served.segment(image_bytes(*size)).headers["X-Checkpoint-Version"] == str(plain)
        world.registry.promote(detailed, by="test", reason="test")
        served.wait_for(detailed)
        answer = served.segment(image_bytes(*size))
        assert answer.headers["X-Checkpoint-Version"] == str(detailed)
        expected = segment_image(world.networks[detailed], picture(*size), (HEIGHT, WIDTH))
        np.testing.assert_array_equal(mask_of(answer), expected)
        world.registry.promote(plain, by="test", reason="back")
        served.wait_for(plain)
        assert served.plane.slots.versions == (plain, detailed)
