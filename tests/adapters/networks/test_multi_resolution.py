"""Context and detail: where the windows lie, how predictions are fused, and that every user of a network takes it."""

import itertools

import pytest
import torch
from torch import Tensor, nn

from adapters.mfm.branch import mfm_loss
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.multi_resolution import (
    STEP,
    MultiResolutionNetwork,
    overlapped_windows,
    random_window,
    view_size,
)
from adapters.networks.network import MIN_SIDE, SegmentationNetwork, Window
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode, prediction_loss, weighted_cross_entropy
from adapters.rounds.optim import build_optimizer
from configs.mfm import MfmSettings
from configs.network import OptimSettings
from tests.adapters.networks.multi_resolution_networks import (
    ALWAYS,
    CLASSES,
    CROP,
    NETWORKS,
    NEVER,
    attend,
    network_of,
    pictures,
)
from tests.sections import section

VIEW = (32, 48)


@pytest.fixture(params=NETWORKS)
def network(request: pytest.FixtureRequest) -> MultiResolutionNetwork:
    return network_of(request.param)


@pytest.fixture
def deeplab() -> MultiResolutionNetwork:
    return network_of("deeplabv2")


def batch(*size: int) -> tuple[Tensor, Tensor, Tensor]:
    """Images, pseudo-labels (some ignored), weights."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (2, *size), generator=generator)
    labels[:, :4] = 255
    return pictures(*size), labels, torch.rand(2, *size, generator=generator)


# Where it looks


@pytest.mark.parametrize(
    ("size", "view"),
    [((1024, 1024), (512, 512)), ((512, 1024), (256, 512)), ((181, 240), (91, 120)), ((45, 20), (32, 20))],
)
def test_a_view_is_half_the_image_and_never_too_small_for_an_encoder(size, view) -> None:
    assert view_size(size) == view
    assert all(min(whole, MIN_SIDE) <= part for whole, part in zip(size, view, strict=True))


def test_published_windows() -> None:
    """Crops of 1024: details of 512 every 256 pixels."""
    assert overlapped_windows((1024, 1024)) == tuple(
        Window(top, left, 512, 512) for top in (0, 256, 512) for left in (0, 256, 512)
    )


@pytest.mark.parametrize("size", [(1024, 2048), (45, 61), (33, 200), (181, 182), (183, 367), (64, 64), (32, 20)])
def test_windows_cover_every_pixel_with_half_overlap(size) -> None:
    seen = torch.zeros(size, dtype=torch.int)
    windows = overlapped_windows(size)
    for window in windows:
        assert window.of(seen).shape == view_size(size)
        window.of(seen).add_(1)
    assert seen.min() == 1 and seen.max() <= 9
    assert len(set(windows)) == len(windows) <= 9
    for one, other in itertools.pairwise(windows):
        assert other.top > one.top or 0 < other.left - one.left <= (one.width + 1) // 2


def test_an_image_no_larger_than_a_window_is_one_window() -> None:
    assert overlapped_windows((32, 20)) == (Window(0, 0, 32, 20),)
    assert random_window((32, 20), StepRng(0)) == Window(0, 0, 32, 20)


def test_random_windows_reach_every_place_of_the_raster_and_none_outside() -> None:
    draws = StepRng(0)
    found = {random_window((96, 128), draws) for _ in range(2000)}
    assert {(window.height, window.width) for window in found} == {(48, 64)}
    assert {window.top for window in found} == set(range(0, 49, STEP))
    assert {window.left for window in found} == set(range(0, 65, STEP))


def test_processes_share_the_window() -> None:
    draws = [StepRng(5, rank=rank, processes=2) for rank in range(2)]
    first, second = ([random_window((96, 128), draw) for _ in range(5)] for draw in draws)
    assert first == second and len(set(first)) > 1


# How predictions are fused


def test_without_attention_the_answer_is_the_upsampled_context_bit_for_bit(network) -> None:
    attend(network, NEVER).eval()
    images = pictures(*CROP)
    context = nn.functional.interpolate(images, VIEW, mode="bilinear", align_corners=False)
    with torch.no_grad():
        expected = network.decode(network.encode(context), CROP)
        assert torch.equal(network(images), expected)
        encoded = encode(network, images, StepRng(0))
        assert torch.equal(network.outputs(encoded.features, encoded.views, CROP)[0].logits, expected)


def test_context_at_exactly_half_size_is_the_mean_of_four_pixels(deeplab) -> None:
    images = pictures(*CROP)
    context, _ = deeplab.views(images, StepRng(0))
    torch.testing.assert_close(context.images, nn.functional.avg_pool2d(images, 2))


def test_full_attention_gives_the_detail_inside_the_window_and_the_context_outside(network) -> None:
    attend(network, ALWAYS).eval()
    images = pictures(*CROP)
    with torch.no_grad():
        encoded = encode(network, images, StepRng(3))
        window = encoded.views[1].window
        fused, detail = network.outputs(encoded.features, encoded.views, CROP)
        context = network.decode(encoded.features[0], CROP)
        assert torch.equal(detail.logits, network.decode(network.encode(window.of(images)), VIEW))
    assert (fused.window, detail.window) == (None, window)
    torch.testing.assert_close(window.of(fused.logits), detail.logits)
    outside = torch.ones(CROP, dtype=torch.bool)
    window.of(outside).fill_(False)
    assert torch.equal(fused.logits[..., outside], context[..., outside])
    assert not torch.allclose(window.of(context), detail.logits)


def test_fusion_is_the_published_formula(deeplab) -> None:
    """A random attention by class: up((1 - a) * context) + up(a) * detail."""
    nn.init.normal_(deeplab.decoder.attention.classifier.weight, std=3.0)
    deeplab.eval()
    images = pictures(*CROP)
    with torch.no_grad():
        (context, _), views = (encoded := encode(deeplab, images, StepRng(3))).features, encoded.views
        fused, detail = deeplab.outputs(encoded.features, views, CROP)
        share, logits = deeplab.decoder.attention(context), deeplab.decoder(context)
        kept, taken = (nn.functional.interpolate(part, CROP, mode="bilinear") for part in ((1 - share) * logits, share))
    assert 0.0 < share.min() < 0.4 and 0.6 < share.max() < 1.0 and share.std(dim=1).min() > 0
    window = views[1].window
    torch.testing.assert_close(window.of(fused.logits), window.of(kept) + window.of(taken) * detail.logits)


class Place(nn.Module):
    """An encoder whose map is the image itself."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return (images,)


class Numbered(nn.Module):
    """A decoder that answers with the number of the image in its stack, from 1."""

    def forward(self, features: tuple[Tensor, ...]) -> Tensor:
        number = torch.arange(1.0, len(features[0]) + 1).view(-1, 1, 1, 1)
        return number.expand(-1, 1, *features[0].shape[-2:])


def test_overlaps_are_averaged_with_the_right_weights() -> None:
    """Two rows of three windows over 48x64 pixels, numbered row by row; by hand."""
    plain = SegmentationNetwork(Place(), Numbered(), num_classes=1, feature_channels=(3,))
    attention = network_of("deeplabv2").decoder.attention
    toy = MultiResolutionNetwork(plain, attention)
    details = toy.encode_all(pictures(48, 64, images=1))[1]
    mean = toy._mean_detail(details, (48, 64))[0, 0]
    assert mean.shape == (48, 64)
    expected = torch.tensor(  # columns end at 16, 32, 48, 64; rows at 16, 32, 48
        [[1, 1.5, 2.5, 3], [2.5, 3, 4, 4.5], [4, 4.5, 5.5, 6]]
    ).repeat_interleave(16, 0)
    torch.testing.assert_close(mean, expected.repeat_interleave(16, 1))


def test_two_images_keep_to_themselves(deeplab) -> None:
    deeplab.eval()
    images = pictures(*CROP)
    with torch.no_grad():
        together = deeplab(images)
        for image, logits in zip(images, together, strict=True):
            torch.testing.assert_close(deeplab(image[None])[0], logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("size", [(45, 61), (33, 200), (32, 32), (97, 64)])
def test_any_size_gets_an_answer_of_its_size(network, size) -> None:
    with torch.no_grad():
        logits = network.eval()(pictures(*size, images=1))
    assert logits.shape == (1, CLASSES, *size) and logits.isfinite().all()


def test_an_image_of_one_window_is_the_same_in_training_and_when_serving(network) -> None:
    """The detail is then the whole image, and so is the context."""
    network.eval()
    images = pictures(32, 32)
    with torch.no_grad():
        encoded = encode(network, images, StepRng(0))
        fused = network.outputs(encoded.features, encoded.views, (32, 32))[0]
        assert torch.equal(fused.logits, network(images))
        assert torch.equal(encoded.views[0].images, images) and torch.equal(encoded.views[1].images, images)


def test_a_training_window_gives_what_the_same_window_gives_when_serving(network) -> None:
    """Where one overlapped window alone looks, it and a training window of the same place answer alike."""
    attend(network, ALWAYS).eval()
    images = pictures(*CROP)
    seed = next(seed for seed in range(1000) if random_window(CROP, StepRng(seed)) == Window(0, 0, *VIEW))
    with torch.no_grad():
        encoded, served = encode(network, images, StepRng(seed)), network(images)
        fused = network.outputs(encoded.features, encoded.views, CROP)[0].logits
    torch.testing.assert_close(fused[..., :16, :24], served[..., :16, :24], rtol=1e-4, atol=1e-5)


def test_half_precision_forward_passes_are_close_to_full_ones(network) -> None:
    network.eval()
    images, labels, _ = batch(*CROP)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        logits, loss = network(images), prediction_loss(network, encode(network, images, StepRng(0)), labels)
    with torch.no_grad():
        torch.testing.assert_close(logits.float(), network(images), rtol=0.05, atol=0.05)
        expected = prediction_loss(network, encode(network, images, StepRng(0)), labels)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0.02)


# Training


def test_loss_is_nine_parts_fused_and_one_part_detail(deeplab) -> None:
    images, labels, weight = batch(*CROP)
    encoded = encode(deeplab, images, StepRng(0))
    fused, detail = deeplab.outputs(encoded.features, encoded.views, CROP)
    window = detail.window
    expected = 0.9 * weighted_cross_entropy(fused.logits, labels, weight)
    expected += 0.1 * weighted_cross_entropy(detail.logits, window.of(labels), window.of(weight))
    torch.testing.assert_close(prediction_loss(deeplab, encoded, labels, weight), expected)


def test_share_of_the_detail_is_the_published_one_and_is_no_weight(deeplab) -> None:
    encoded = encode(deeplab, pictures(*CROP), StepRng(0))
    shares = [output.share for output in deeplab.outputs(encoded.features, encoded.views, CROP)]
    assert shares == pytest.approx([0.9, 0.1])
    assert not any("detail_loss_weight" in name for name in deeplab.state_dict())


def test_gradients_reach_encoder_decoder_and_attention(network) -> None:
    encoded = encode(network, *(images := batch(*CROP))[:1], StepRng(0))
    prediction_loss(network, encoded, *images[1:]).backward()
    for part in (network.encoder, network.decoder.head, network.decoder.attention):
        assert [name for name, value in part.named_parameters() if value.grad is None or not value.grad.any()] == []


@pytest.mark.parametrize("view", [0, 1])
def test_both_views_teach_the_encoder(network, view) -> None:
    """Each with the other's maps cut off."""
    images, labels, weight = batch(*CROP)
    encoded = encode(network, images, StepRng(0))
    maps = [
        features if number == view else tuple(level.detach() for level in features)
        for number, features in enumerate(encoded.features)
    ]
    prediction_loss(network, encoded, labels, weight, maps).backward()
    assert any(value.grad is not None and value.grad.any() for value in network.encoder.parameters())


def test_optimizer_trains_the_attention_as_fast_as_the_decoder(deeplab) -> None:
    groups = build_optimizer(deeplab, OptimSettings(learning_rate=1e-4)).param_groups
    rates = {parameter: group["lr"] for group in groups for parameter in group["params"]}
    assert {rates[value] for value in deeplab.decoder.attention.parameters()} == {1e-3}
    assert set(rates) == set(deeplab.parameters())


def test_plain_network_has_the_same_weights_without_the_attention() -> None:
    plain = build_network(NETWORKS["deeplabv3plus"].model_copy(update={"multi_resolution": False}), CLASSES)
    names = {name.replace("decoder.head.", "decoder.") for name in network_of("deeplabv3plus").state_dict()}
    assert set(plain.state_dict()) == {name for name in names if not name.startswith("decoder.attention.")}
    assert len(names) > len(plain.state_dict())


# Masked Feature Modeling


def test_mfm_that_keeps_everything_is_the_plain_loss_bit_for_bit(network) -> None:
    """Also in train mode, and for the same window: each draws it first."""
    images, labels, weight = batch(*CROP)
    rebuilder = build_rebuilder(network, network.view_size(CROP), section(MfmSettings, dim=32, heads=4, blocks=1))
    keep = [torch.ones(2, 1, *maps[-1].shape[-2:], dtype=torch.bool) for maps in encode(network, images, StepRng(2))[0]]
    plain = prediction_loss(network, encode(network, images, StepRng(2)), labels, weight)
    assert torch.equal(mfm_loss(network, rebuilder, images, labels, weight, StepRng(2), keep), plain)
    assert not torch.equal(mfm_loss(network, rebuilder, images, labels, weight, StepRng(2)), plain)


def test_mfm_rebuilds_each_scale_under_a_mask_of_its_own(network) -> None:
    images, labels, weight = batch(*CROP)
    rebuilder = build_rebuilder(network, network.view_size(CROP), section(MfmSettings, dim=32, heads=4, blocks=1))
    calls: list[tuple[tuple[int, ...], Tensor]] = []
    rebuilder.register_forward_pre_hook(lambda _, inputs: calls.append((tuple(inputs[0][-1].shape), inputs[1])))
    mfm_loss(network, rebuilder, images, labels, weight, StepRng(2)).backward()
    (context, mask), (detail, other) = calls
    assert context == detail and not torch.equal(mask, other)
    for part in (network.encoder, network.decoder.head, network.decoder.attention, rebuilder):
        assert [name for name, value in part.named_parameters() if value.grad is None or not value.grad.any()] == []


def test_mfm_leaves_the_statistics_of_decoder_and_attention_alone(network) -> None:
    rebuilder = build_rebuilder(network, network.view_size(CROP), section(MfmSettings, dim=32, heads=4, blocks=1))
    before = {name: value.clone() for name, value in network.decoder.named_buffers()}
    assert any(name.startswith("attention.") for name in before)
    mfm_loss(network, rebuilder, *batch(*CROP), StepRng(2))
    assert all(torch.equal(value, before[name]) for name, value in network.decoder.named_buffers())


@pytest.mark.parametrize("serving", [False, True], ids=["training pass", "answer"])
def test_a_pass_records_context_and_detail_once_each_and_the_attention_the_context(network, serving) -> None:
    """So the statistics of a candidate, estimated from answers, are of the same mixture as those of training."""
    if serving:
        network(pictures(*CROP))
    else:
        prediction_loss(network, encode(network, pictures(*CROP), StepRng(0)), *batch(*CROP)[1:])
    counts = {name: int(value) for name, value in network.named_buffers() if name.endswith("num_batches_tracked")}
    assert {count for name, count in counts.items() if ".attention." in name} == {1}
    assert {count for name, count in counts.items() if ".attention." not in name} <= {2}
