"""Each score against what it is by definition, on real tensors."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from kornia.color import rgb_to_lab
from torch import Tensor, nn

from adapters.augmentation.styled import MAX_GAIN, match_colours, restyle, swap_low_frequencies
from adapters.networks.network import SegmentationNetwork
from adapters.scoring.scores.counts import confusion, count_images
from adapters.scoring.scores.disagreement import RATE, dropout_disagreement, dropped, flip_consistency
from adapters.scoring.scores.diversity import MAX_PIXELS, area, gram_matrix, marginal, mean_entropy
from adapters.scoring.scores.iou import class_iou, labelled_mean_iou, mean_iou


@pytest.fixture(autouse=True)
def _no_gradients():
    with torch.inference_mode():
        yield


def network(seed: int = 0, classes: int = 4) -> SegmentationNetwork:
    """A small real network with random weights."""
    torch.manual_seed(seed)
    encoder = nn.ModuleList([nn.Conv2d(3, 16, 3, 2, 1), nn.Conv2d(16, 24, 3, 2, 1)])
    return SegmentationNetwork(Pyramid(encoder), Head(classes), num_classes=classes, feature_channels=(16, 24)).eval()


class Pyramid(nn.Module):
    def __init__(self, stages: nn.ModuleList) -> None:
        super().__init__()
        self.stages = stages

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        maps = []
        for stage in self.stages:
            images = stage(images).relu()
            maps.append(images)
        return tuple(maps)


class Head(nn.Module):
    def __init__(self, classes: int) -> None:
        super().__init__()
        self.classify = nn.Conv2d(40, classes, 1)

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        deep = nn.functional.interpolate(features[1], features[0].shape[-2:])
        return self.classify(torch.cat([features[0], deep], dim=1)) * 20


def test_confusion_counts_pixel_by_pixel() -> None:
    prediction = torch.tensor([[0, 1, 1], [2, 2, 0]], dtype=torch.uint8)
    label = torch.tensor([[0, 1, 2], [2, 255, 255]], dtype=torch.uint8)
    assert confusion(prediction, label, 3, 255).tolist() == [[1, 0, 0], [0, 1, 0], [0, 1, 1]]


def test_confusion_leaves_out_an_ignored_value_among_the_classes() -> None:
    prediction, label = torch.tensor([[0, 0]]), torch.tensor([[0, 1]])
    assert confusion(prediction, label, 2, 0).tolist() == [[0, 0], [1, 0]]


def test_confusion_of_nothing_is_zero() -> None:
    label = torch.full((2, 2), 255)
    assert confusion(torch.zeros(2, 2), label, 2, 255).sum() == 0


@pytest.mark.parametrize(
    ("prediction", "label"), [(torch.zeros(2, 2), torch.zeros(2, 3)), (torch.tensor([[3]]), torch.tensor([[0]]))]
)
def test_confusion_refuses_what_does_not_fit(prediction: Tensor, label: Tensor) -> None:
    with pytest.raises(ValueError, match=r"differ in size|class 3 in a map of 3"):
        confusion(prediction, label, 3, 255)


def test_counts_are_kept_per_image() -> None:
    pairs = [(torch.tensor([[0, 1]]), torch.tensor([[0, 0]])), (torch.tensor([[1, 1]]), torch.tensor([[1, 255]]))]
    found = count_images(pairs, 2, 255)
    assert (found.tp, found.fp, found.fn) == ([[1, 0], [0, 1]], [[0, 1], [0, 0]], [[1, 0], [0, 0]])


def test_iou_by_hand() -> None:
    tp, fp, fn = (np.array(kind, float) for kind in ([[6, 0, 0, 0]], [[2, 3, 0, 0]], [[2, 0, 5, 0]]))
    np.testing.assert_allclose(class_iou(tp, fp, fn), [[0.6, 0.0, 0.0, np.nan]])
    np.testing.assert_allclose(mean_iou(tp, fp, fn), [0.2])
    np.testing.assert_allclose(labelled_mean_iou(tp, fp, fn), [0.3])
    np.testing.assert_allclose(labelled_mean_iou(tp, fp, fn, [3, 9, 1, 1]), [0.45])
    assert np.isnan(labelled_mean_iou(tp, fp, fn, [0, 1, 0, 1])).all(), "no labelled class counts"
    assert np.isnan(mean_iou(tp * 0, fp * 0, fn * 0)).all()


def test_gram_matrix_is_that_of_all_pixels() -> None:
    soft = torch.rand(4, 7, 9).softmax(dim=0)
    rows = soft.flatten(1).T.double()
    torch.testing.assert_close(gram_matrix(soft), rows.T @ rows)
    assert gram_matrix(soft).sum().item() == pytest.approx(63, rel=1e-5)


def test_gram_matrix_of_a_large_image_samples_a_regular_grid() -> None:
    soft = torch.zeros(2, 400, 600)
    soft[0, :, :300], soft[1, :, 300:] = 1, 1
    gram = gram_matrix(soft)
    assert gram.sum() <= MAX_PIXELS
    assert gram[0, 0] == gram[1, 1] == gram.sum() / 2


def test_marginal_area_and_entropy() -> None:
    soft = torch.full((4, 2, 3), 0.25)
    assert marginal(soft).tolist() == [0.25] * 4
    assert mean_entropy(soft) == pytest.approx(np.log(4))
    assert mean_entropy(torch.eye(4)[:, :, None]) == 0.0
    assert area(torch.tensor([[0, 0, 3]]), 4).tolist() == pytest.approx([2 / 3, 0, 0, 1 / 3])


def test_dropout_takes_whole_channels_and_keeps_the_mean() -> None:
    features = [torch.ones(1, 4000, 2, 2), torch.ones(1, 8, 1, 1)]
    wide, _ = dropped(features, seed=1)
    assert wide.unique().tolist() == pytest.approx([0.0, 1 / (1 - RATE)])
    assert (wide.amin(dim=(2, 3)) == wide.amax(dim=(2, 3))).all()
    assert wide.mean().item() == pytest.approx(1.0, abs=0.03)


def test_dropout_masks_follow_the_seed_alone() -> None:
    one, other = torch.rand(1, 64, 3, 3) + 0.1, torch.rand(1, 64, 5, 5) + 0.1
    (first,), (second,), (third,) = dropped([one], 7), dropped([other], 7), dropped([one], 8)
    assert torch.equal(first[0, :, 0, 0] == 0, second[0, :, 0, 0] == 0)
    assert not torch.equal(first[0, :, 0, 0] == 0, third[0, :, 0, 0] == 0)


def test_disagreement_grows_as_margins_shrink() -> None:
    model, image = network(), torch.rand(1, 3, 32, 32)
    features, prediction = model.encode_all(image), model(image)[0].argmax(0)
    first = dropout_disagreement(model, features, prediction, 0)
    assert 0.0 < first < 1.0
    assert dropout_disagreement(model, features, prediction, 0) == first
    model.decoder.classify.bias[int(prediction.flatten().mode().values)] += 1000
    certain = model(image)[0].argmax(0)
    assert dropout_disagreement(model, model.encode_all(image), certain, 0) == 0.0


def test_flip_consistency_is_one_only_for_symmetric_answers() -> None:
    class ByColour(SegmentationNetwork):
        def encode(self, images: Tensor) -> tuple[Tensor, ...]:
            return (images,)

        def decode(self, features: object, size: tuple[int, int]) -> Tensor:
            return features[0]  # type: ignore[index]

    class ByPlace(ByColour):
        def decode(self, features: object, size: tuple[int, int]) -> Tensor:
            answer = torch.zeros(1, 2, *size)
            answer[:, 1, :, : size[1] // 4] = 1
            return answer

    image = torch.rand(1, 3, 4, 8)
    for kind, expected in ((ByColour, 1.0), (ByPlace, 0.5)):
        model = kind(nn.Identity(), nn.Identity(), num_classes=3, feature_channels=(3,))
        assert flip_consistency(model, image, model(image)[0].argmax(0)) == expected


def lab(pixels: Tensor) -> Tensor:
    return rgb_to_lab(pixels.permute(2, 0, 1)[None].float() / 255)[0].flatten(1)


def picture(seed: int, size: tuple[int, int], low: int, high: int) -> Tensor:
    """Blocks of colour with a gradient over them, uint8 [h, w, 3]."""
    rng = np.random.default_rng(seed)
    blocks = rng.integers(low, high, (size[0] // 5, size[1] // 5, 3)).repeat(5, 0).repeat(5, 1)
    return torch.from_numpy((blocks * np.linspace(0.7, 1, size[1])[None, :, None]).astype(np.uint8))


def test_restyled_image_has_the_frame_s_colours_and_its_own_layout() -> None:
    day, dusk = (
        picture(0, (40, 50), 60, 220),
        picture(1, (30, 60), 20, 90) // torch.tensor([3, 2, 1], dtype=torch.uint8),
    )
    styled = restyle(day, dusk)
    assert (styled.dtype, styled.shape) == (torch.uint8, day.shape)
    torch.testing.assert_close(lab(styled).mean(1), lab(dusk).mean(1), atol=2, rtol=0)
    torch.testing.assert_close(lab(styled).std(1), lab(dusk).std(1), atol=3, rtol=0)
    assert torch.corrcoef(torch.stack([lab(styled)[0], lab(day)[0]]))[0, 1] > 0.7


def test_restyling_to_itself_changes_nothing() -> None:
    image = picture(2, (20, 30), 0, 256)
    assert (restyle(image, image).int() - image.int()).abs().max() <= 1


@pytest.mark.parametrize("size", [(40, 50), (41, 51)])
def test_only_low_frequencies_are_swapped(size: tuple[int, int]) -> None:
    """A gradient comes over from the frame, a fine pattern stays the source's."""
    rows, columns = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    fine = 0.5 + 0.1 * (-1.0) ** (rows + columns)
    slow = 0.5 + 0.2 * torch.cos(2 * torch.pi * columns / size[1])
    swapped = swap_low_frequencies(fine.expand(3, -1, -1), slow.expand(3, -1, -1))
    spectrum = torch.fft.rfft2(swapped[0]).abs() / fine.numel()
    assert spectrum[0, 1].item() == pytest.approx(0.1, abs=0.01)
    kept = (torch.fft.rfft2(fine).abs() / fine.numel())[10:-10]
    torch.testing.assert_close(spectrum[10:-10], kept, atol=0.01, rtol=0)


def test_flat_images_are_restyled_without_harm() -> None:
    flat = torch.full((20, 20, 3), 128, dtype=torch.uint8)
    assert (restyle(flat, flat // 2).int() - 64).abs().max() <= 1


def test_contrast_is_not_raised_without_limit() -> None:
    faint = torch.full((3, 20, 20), 0.5)
    faint[:, 0, 0] = 0.51
    wild = picture(1, (20, 20), 0, 256).permute(2, 0, 1) / 255
    before, after = (rgb_to_lab(image[None])[0, 0] for image in (faint, match_colours(faint, wild)))
    assert after.max() - after.min() <= MAX_GAIN * (before.max() - before.min()) + 0.1


def test_iou_needs_no_torch() -> None:
    code = "import sys, adapters.scoring.scores.iou; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
