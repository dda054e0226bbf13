"""Options of the forward pass through a whole inference plane."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from adapters.inference.segment import segment_fitted, segment_image
from adapters.inference.windows import Window
from adapters.networks.network import normalise
from storage.media.images import Fit, fit_frame
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


@pytest.mark.parametrize("options", [{"precision": "bf16"}, {"channels_last": True}])
def test_answers_under_an_option_are_close_to_plain_ones_from_swap_to_swap(
    world: World, options: dict[str, object]
) -> None:
    with running(world.settings(**options)) as served:
        for seed in FEW_TIES:
            version = world.add(seed)
            served.wait_for(version)
            live = served.plane.slots.live
            assert live is not None
            labels = mask_of(served.segment(image_bytes()))
            plain = segment_image(tiny_network(seed), picture(), (HEIGHT, WIDTH))
            assert float(np.mean(labels == plain)) > 0.95


def test_a_version_is_served_at_the_fit_that_it_was_registered_with(world: World) -> None:
    network, fit, size = tiny_network(FEW_TIES[0]), Fit("squash", "bicubic"), (150, 60)
    with running(world.settings()) as served:
        served.wait_for(world.add_network(network, fit=fit))
        labels = mask_of(served.segment(image_bytes(*size)))
    assert np.array_equal(labels, segment_image(network, picture(*size), (HEIGHT, WIDTH), fit))
    assert not np.array_equal(labels, segment_image(network, picture(*size), (HEIGHT, WIDTH)))


def test_sliding_windows_compute_in_the_format_of_the_settings(world: World) -> None:
    size, windows = (150, 200), 2
    with running(world.settings(window="slide", window_overlap=0.5, precision="bf16")) as served:
        for seed in FEW_TIES:
            served.wait_for(world.add(seed))
            live = served.plane.slots.live
            assert live is not None and live.forward.computes == "bf16"
            in_bf16: list[bool] = []
            live.forward.network.register_forward_pre_hook(
                lambda *_, seen=in_bf16: seen.append(torch.is_autocast_enabled("cpu"))
            )
            labels = mask_of(served.segment(image_bytes(*size)))
            assert in_bf16 == [True] * windows
            window = Window(HEIGHT, WIDTH, 0.5)
            [plain] = segment_fitted(tiny_network(seed), [window.fit(picture(*size))], [size], window.logits)
            assert float(np.mean(labels == plain.numpy())) > 0.95


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method.*:DeprecationWarning")
@pytest.mark.nightly  # `make test` compiles in tests/adapters/inference/test_served.py
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
