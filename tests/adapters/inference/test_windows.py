"""Sliding windows: where they lie, how an image is scaled for them, and that overlapping logits are averaged."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adapters.inference.segment import logits_of, segment_fitted
from adapters.inference.windows import LONGEST, Window, starts
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from configs.network import Architecture
from storage.media.images import fit_frame

CLASSES = 3


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.manual_seed(0)
    return build_network(Architecture(encoder="mit_tiny", channels=16), CLASSES).eval()


@given(st.integers(1, 500), st.integers(1, 200), st.floats(0, 0.9))
def test_windows_cover_a_side_and_overlap_at_least_as_asked(length: int, window: int, overlap: float) -> None:
    places = starts(length, window, overlap)
    assert places[0] == 0 and places[-1] == max(0, length - window) and places == sorted(set(places))
    steps = [after - before for before, after in itertools.pairwise(places)]
    assert all(step <= max(1, window * (1 - overlap)) for step in steps)


@given(st.integers(1, 65_535), st.integers(1, 65_535))
def test_an_image_covers_the_window_unless_it_would_become_endless(height: int, width: int) -> None:
    window = Window(64, 96, 0.5)
    rows, columns = window.scaled_size(height, width)
    covers = rows >= 64 and columns >= 96 and (rows == 64 or columns == 96)
    endless = rows == 64 * LONGEST or columns == 96 * LONGEST
    assert covers or endless
    assert rows <= 64 * LONGEST and columns <= 96 * LONGEST


def test_the_scaled_image_keeps_its_aspect() -> None:
    window = Window(64, 96, 0.5)
    for height, width in [(64, 96), (50, 300), (200, 50), (333, 517), (1, 1), (2000, 3000)]:
        frame = window.fit(np.zeros((height, width, 3), np.uint8))
        assert min(frame.valid_height - 64, frame.valid_width - 96) == 0
        assert abs(frame.valid_height * width - frame.valid_width * height) <= max(height, width)


def test_an_image_of_the_input_size_is_one_window(network: SegmentationNetwork) -> None:
    images = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(Window(64, 96, 0.5).logits(network, images), logits_of(network, images))


def test_logits_of_overlapping_windows_are_averaged(network: SegmentationNetwork) -> None:
    image = torch.randn(1, 3, 64, 160)
    with torch.inference_mode():
        left, right = (logits_of(network, image[..., start : start + 96]) for start in (0, 64))
        slid = Window(64, 96, 1 / 3).logits(network, image)
    assert torch.equal(slid[..., :64], left[..., :64]) and torch.equal(slid[..., 96:], right[..., 32:])
    torch.testing.assert_close(slid[..., 64:96], (left[..., 64:] + right[..., :32]) / 2)


def test_windows_see_an_image_at_a_finer_scale_than_resizing_does(network: SegmentationNetwork) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 400, 3), dtype=np.uint8)
    window = Window(64, 96, 0.33)
    slid = segment_fitted(network, [window.fit(pixels)], [(64, 400)], window.logits)[0]
    resized = segment_fitted(network, [fit_frame(pixels, 64, 96)], [(64, 400)])[0]
    assert slid.shape == resized.shape == (64, 400) and not torch.equal(slid, resized)
