"""Options of the forward pass through a whole inference plane."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import nn

from adapters.inference.segment import segment_fitted, segment_image
from adapters.inference.windows import Window
from adapters.networks.pixels import normalise
from configs.serving import ServingSettings
from daemon.serving.api.status import describe
from daemon.serving.plane import InferencePlane
from daemon.serving.versions.calibration import Calibration
from storage.buffer.catalog_records import FileFact
from storage.buffer.frames import FrameBuffer, NewFrame
from storage.media.images import fit_frame
from tests.daemon.serving.serving_world import (
    FEW_TIES,
    HEIGHT,
    WIDTH,
    World,
    image_bytes,
    mask_of,
    picture,
    running,
    tiny_network,
    wait_until,
)

COMPILE_SECONDS = 150.0
"""Longest wait for the compiler (seconds): several times what a busy machine needs."""


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
        for seed in FEW_TIES:
            version = world.add(seed)
            served.wait_for(version)
            live = served.plane.slots.live
            assert live is not None and live.float_because == ""
            labels = mask_of(served.segment(image_bytes()))
            plain = segment_image(tiny_network(seed), picture(), (HEIGHT, WIDTH))
            assert float(np.mean(labels == plain)) > 0.95


@pytest.mark.parametrize(("option", "value"), [("precision", "bf16"), ("quantize", "int8")])
def test_sliding_windows_run_what_was_prepared(world: World, option: str, value: str) -> None:
    size, windows = (150, 200), 2
    with running(world.settings(window="slide", window_overlap=0.5, **{option: value})) as served:
        for seed in FEW_TIES:
            served.wait_for(world.add(seed))
            live = served.plane.slots.live
            assert live is not None and live.forward.computes == value
            in_bf16: list[bool] = []
            in_float, in_int8 = live.forward.form, (*live.forward._int8, None)[0]
            in_float.register_forward_pre_hook(lambda *_, seen=in_bf16: seen.append(torch.is_autocast_enabled("cpu")))
            twin_runs: list[None] = []
            if in_int8 is not None:
                in_int8.register_forward_pre_hook(lambda *_, seen=twin_runs: seen.append(None))
            labels = mask_of(served.segment(image_bytes(*size)))
            assert (in_bf16, len(twin_runs)) == (([True] * windows, 0) if value == "bf16" else ([], windows))
            window = Window(HEIGHT, WIDTH, 0.5)
            [plain] = segment_fitted(tiny_network(seed), [window.fit(picture(*size))], [size], window.logits)
            assert float(np.mean(labels == plain.numpy())) > 0.95


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.parametrize(("window", "size"), [("resize", (HEIGHT, WIDTH)), ("slide", (100, 200))])
def test_compiled_code_answers_what_the_network_does(
    world: World, monkeypatch: pytest.MonkeyPatch, window: str, size: tuple[int, int]
) -> None:
    """No request compiles either, though windows of images of many sizes lie in memory in many ways."""
    network = tiny_network(1, name="deeplabv2", encoder="resnet_tiny")
    world.add(1, name="deeplabv2", encoder="resnet_tiny")
    with running(world.settings(compile=True, window=window, window_overlap=0.5)) as served:
        wait_until(lambda: served.plane.slots.live is not None, "the version is compiled", COMPILE_SECONDS)
        live = served.plane.slots.live
        assert live is not None and live.forward._compiled is not None
        monkeypatch.setattr(live.forward._compiled, "_network", None)  # what runs for shapes that are not compiled
        with torch.compiler.set_stance("fail_on_recompile"):
            answer = served.segment(image_bytes(*size))
        assert answer.status_code == 200, answer.text
        labels = mask_of(answer)
    slides = Window(HEIGHT, WIDTH, 0.5)
    frame = slides.fit(picture(*size)) if window == "slide" else fit_frame(picture(*size), HEIGHT, WIDTH)
    with torch.inference_mode():
        logits = slides.logits(network, normalise(torch.from_numpy(frame.cropped()[None].copy())))
        top = F.interpolate(logits, size, mode="bilinear", align_corners=False)[0].topk(2, dim=0)
    clear = (top.values[0] - top.values[1] > 1e-4).numpy()
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(labels[clear], top.indices[0].numpy()[clear])


def test_a_version_that_int8_would_change_serves_in_float32_and_says_why(world: World) -> None:
    with plane_of(world, quantize="int8") as plane:
        network = tiny_network(FEW_TIES[0])
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
