"""From images to label maps: padding, batching, odd sizes."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from adapters.inference import segment as inference
from adapters.inference.segment import choose_device, labels_at, logits_of, segment_fitted, segment_image
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork, normalise
from configs.network import Architecture
from storage.media.images import FittedFrame, fit_frame

SIZE = (64, 96)


@pytest.fixture(scope="module")
def network() -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    settings = Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16)
    return build_network(settings, 5).eval()


def picture(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_normalise_uses_imagenet_statistics() -> None:
    frames = torch.full((2, 4, 5, 3), 255, dtype=torch.uint8)
    frames[1] = 0
    images = normalise(frames)
    assert images.shape == (2, 3, 4, 5)
    assert images.dtype == torch.float32
    assert images[0, :, 0, 0].tolist() == pytest.approx([2.2489, 2.4286, 2.64], abs=1e-3)
    assert images[1, :, 0, 0].tolist() == pytest.approx([-2.1179, -2.0357, -1.8044], abs=1e-3)


@pytest.mark.parametrize(("height", "width"), [(64, 96), (128, 192), (300, 200), (31, 47), (1, 400), (400, 1), (7, 9)])
def test_answer_has_the_size_of_the_image(network: SegmentationNetwork, height: int, width: int) -> None:
    labels = segment_image(network, picture(height, width), SIZE)
    assert labels.shape == (height, width)
    assert labels.dtype == np.uint8
    assert labels.max() < 5


def test_batched_answers_equal_unbatched(network: SegmentationNetwork) -> None:
    frames = [fit_frame(picture(100, 120, seed), *SIZE) for seed in range(4)]
    sizes = [(100, 120), (50, 60), (200, 240), (100, 120)]
    together = segment_fitted(network, frames, sizes)
    for frame, size, labels in zip(frames, sizes, together, strict=True):
        assert labels.shape == size
        assert labels.dtype == torch.uint8
        assert torch.equal(segment_fitted(network, [frame], [size])[0], labels)


def test_padding_does_not_change_the_answer(network: SegmentationNetwork) -> None:
    frame = fit_frame(picture(100, 60), *SIZE)
    assert frame.valid_width < SIZE[1]
    noisy = frame.pixels.copy()
    noisy[:, frame.valid_width :] = 255
    other = FittedFrame(noisy, frame.valid_height, frame.valid_width)
    first, second = segment_fitted(network, [frame, other], [(100, 60), (100, 60)])
    assert torch.equal(first, second)


def test_frames_of_different_valid_sizes_are_refused(network: SegmentationNetwork) -> None:
    frames = [fit_frame(picture(100, 60), *SIZE), fit_frame(picture(60, 100), *SIZE)]
    with pytest.raises(ValueError, match="one valid size"):
        segment_fitted(network, frames, [(100, 60), (60, 100)])


def test_small_regions_keep_their_logits_aligned(network: SegmentationNetwork) -> None:
    """A region below the minimal side is extended to the right and below, so its logits stay where they were."""
    images = torch.randn(1, 3, 10, 64)
    extended = torch.cat([images, images[:, :, -1:].expand(-1, -1, 22, -1)], dim=2)
    with torch.no_grad():
        assert torch.equal(logits_of(network, images), network(extended)[:, :, :10])


@pytest.mark.parametrize("size", [(64, 96), (151, 203), (20, 31), (640, 17)])
@pytest.mark.parametrize("band", [1, 50_000, 8_000_000])
def test_labels_at_equals_bilinear_then_argmax(
    monkeypatch: pytest.MonkeyPatch, size: tuple[int, int], band: int
) -> None:
    monkeypatch.setattr(inference, "_BAND_VALUES", band)
    logits = torch.randn(5, 64, 96, generator=torch.Generator().manual_seed(2))
    expected = F.interpolate(logits[None], size, mode="bilinear", align_corners=False)[0]
    best = expected.topk(2, dim=0).values
    clear = best[0] - best[1] > 1e-4  # rounding may decide a tie either way
    labels = labels_at(logits, size)
    assert labels.shape == size
    assert clear.float().mean() > 0.99
    assert torch.equal(labels[clear], expected.argmax(0)[clear].to(torch.uint8))


def test_cpu_is_cpu_and_auto_follows_the_machine() -> None:
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
