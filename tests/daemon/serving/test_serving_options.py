"""Options of the forward pass through a whole inference plane."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import nn

from adapters.inference import segment_image
from configs.serving import ServingSettings
from daemon.serving.calibration import Calibration
from daemon.serving.plane import InferencePlane
from daemon.serving.status import describe
from storage.catalog import FileFact
from storage.frames import FrameBuffer, NewFrame
from storage.images import fit_frame
from tests.daemon.serving.serving_world import (
    HEIGHT,
    WIDTH,
    World,
    image_bytes,
    mask_of,
    picture,
    running,
    tiny_network,
)


@contextmanager
def plane_of(world: World, **options: object) -> Iterator[InferencePlane]:
    """A plane that nothing follows."""
    plane = InferencePlane(world.settings(**options))
    yield plane
    plane.stop()


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"channels_last": True}, {"quantize": "int8"}])
def test_answers_under_an_option_are_close_to_plain_ones_from_swap_to_swap(
    world: World, options: dict[str, object]
) -> None:
    with running(world.settings(**options)) as served:
        for seed in (1, 3):
            version = world.add(seed)
            served.wait_for(version)
            labels = mask_of(served.segment(image_bytes()))
            plain = segment_image(tiny_network(seed), picture(), (HEIGHT, WIDTH))
            assert float(np.mean(labels == plain)) > 0.95


def test_a_version_that_int8_would_change_serves_in_float32_and_says_why(world: World) -> None:
    with plane_of(world, quantize="int8") as plane:
        network = tiny_network(1)
        world.add_network(network)
        plane.swapper.serve(1)
        assert describe(plane).computes == "int8" and describe(plane).float_because == ""
        classifier = network.decoder.classifier
        assert isinstance(classifier, nn.Conv2d)
        kept = classifier.weight.detach().clone()
        with torch.no_grad():
            classifier.weight[:, 0] += 1000.0
        try:
            world.add_network(network)
        finally:
            with torch.no_grad():
                classifier.weight.copy_(kept)
        plane.swapper.serve(2)
        status = describe(plane)
        assert (status.version, status.computes) == (2, "float32")
        assert "of the pixels, less than 99%" in status.float_because
        assert plane.metrics.registry.get_sample_value("mfmd_quantization_refused_total") == 1


def test_int8_is_calibrated_on_frames_of_the_buffer_or_else_on_noise(world: World) -> None:
    settings = world.settings()
    calibration = Calibration(settings)
    assert len(calibration.images((HEIGHT, WIDTH))) == 8, "noise"
    frame = fit_frame(picture(48, 96), HEIGHT, WIDTH)
    with FrameBuffer.open(world.layout, settings.buffer, writable=True) as buffer:
        buffer.append([NewFrame(FileFact("a.png", 1, 1), "0" * 64, 1.0, 48, 96, frame)])
    [image] = calibration.images((HEIGHT, WIDTH))
    assert tuple(image.shape) == (1, 3, 48, 96)


@pytest.mark.parametrize("other", [{"compile": True}, {"precision": "bf16"}])
def test_int8_stands_alone(other: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match=r"serving\.quantize int8 goes with neither"):
        ServingSettings.model_validate({"quantize": "int8", **other})
