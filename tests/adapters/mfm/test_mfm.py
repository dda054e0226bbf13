"""The loss of Masked Feature Modeling: what it equals, what it trains, what it leaves alone."""

import pytest
import torch
from torch import Tensor, nn

from adapters.mfm.branch import mfm_loss, untouched_running_statistics
from adapters.mfm.feature_mask import grid_of
from adapters.mfm.rebuilder import Rebuilder, build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import weighted_cross_entropy
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.sections import section

CROP = (64, 96)
CLASSES = 4
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=16, dropout=0.0),
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny"),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16, dropout=0.0),
    "unet": Architecture(name="unet", encoder="unet_tiny", dropout=0.0),
}


@pytest.fixture(params=NETWORKS)
def student(request: pytest.FixtureRequest) -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build_network(NETWORKS[request.param], CLASSES).train()


@pytest.fixture
def rebuilder(student: SegmentationNetwork) -> Rebuilder:
    return build_rebuilder(student, CROP, section(MfmSettings, dim=32, heads=4, blocks=1))


@pytest.fixture
def batch() -> tuple[Tensor, Tensor, Tensor]:
    """Images, pseudo-labels (some ignored), weights."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(0, CLASSES, (2, *CROP), generator=generator)
    labels[:, :4] = 255
    return torch.randn(2, 3, *CROP, generator=generator), labels, torch.rand(2, *CROP, generator=generator)


def keep_all(student: SegmentationNetwork, rebuilder: Rebuilder, images: Tensor) -> Tensor:
    with torch.no_grad():
        rows, columns = grid_of(student.encode(images)[-1].shape[-2:], rebuilder.settings.ablation.grid)
    return torch.ones(len(images), 1, rows, columns, dtype=torch.bool)


def batch_norms(module: nn.Module) -> list[nn.BatchNorm2d]:
    return [layer for layer in module.modules() if isinstance(layer, nn.BatchNorm2d)]


def test_keep_all_gives_plain_logits_bit_for_bit(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, _, _ = batch
    student.eval()
    keep = keep_all(student, rebuilder, images)
    with torch.no_grad():
        rebuilt = rebuilder(student.encode(images), keep)
        assert torch.equal(student.decode(rebuilt, CROP), student(images))


def test_keep_all_gives_the_plain_loss_in_training(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """Also in train mode: the branch uses the batch's statistics, like the plain pass."""
    images, labels, weight = batch
    keep = keep_all(student, rebuilder, images)
    plain = weighted_cross_entropy(student(images), labels, weight)
    assert torch.equal(mfm_loss(student, rebuilder, images, labels, weight, StepRng(2), [keep]), plain)


def test_loss_reaches_encoder_decoder_rebuilder_and_mask_token(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    mfm_loss(student, rebuilder, *batch, StepRng(2)).backward()
    for part in (student.encoder, student.decoder, rebuilder):
        idle = [name for name, value in part.named_parameters() if value.grad is None or not value.grad.abs().sum() > 0]
        assert idle == []
    assert rebuilder.mask_token.grad is not None
    assert rebuilder.mask_token.grad.abs().sum() > 0


def test_decoder_statistics_stay_untouched_and_encoder_statistics_move(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    decoder_before = {name: value.clone() for name, value in student.decoder.named_buffers()}
    encoder_before = {name: value.clone() for name, value in student.encoder.named_buffers() if "running_mean" in name}
    mfm_loss(student, rebuilder, *batch, StepRng(2)).backward()
    assert all(torch.equal(value, decoder_before[name]) for name, value in student.decoder.named_buffers())
    moved = dict(student.encoder.named_buffers())
    assert not any(torch.equal(moved[name], value) for name, value in encoder_before.items())


def test_decoder_statistics_are_recorded_again_afterwards(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    mfm_loss(student, rebuilder, *batch, StepRng(2))
    before = [layer.running_mean.clone() for layer in batch_norms(student.decoder)]
    student(batch[0])
    assert not any(
        torch.equal(layer.running_mean, old)
        for layer, old in zip(batch_norms(student.decoder), before, strict=True)
    )  # fmt: skip


def test_statistics_are_recorded_again_after_an_error() -> None:
    layer = nn.BatchNorm2d(3)
    with pytest.raises(ZeroDivisionError), untouched_running_statistics(layer):
        assert not layer.track_running_stats
        _ = 1 / 0
    assert layer.track_running_stats


def test_masked_pixels_count_too(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    """A wholly masked image still has a loss, which trains the Rebuilder."""
    images, labels, weight = batch
    nothing = ~keep_all(student, rebuilder, images)
    loss = mfm_loss(student, rebuilder, images, labels, weight, StepRng(2), [nothing])
    assert loss > 0
    loss.backward()
    assert all(value.grad is None or value.grad.abs().sum() == 0 for value in student.encoder.parameters())


def test_no_confidence_means_no_loss(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    images, labels, weight = batch
    assert mfm_loss(student, rebuilder, images, labels, torch.zeros_like(weight), StepRng(2)) == 0
    keep = keep_all(student, rebuilder, images)
    half = mfm_loss(student, rebuilder, images, labels, weight / 2, StepRng(2), [keep])
    full = mfm_loss(student, rebuilder, images, labels, weight, StepRng(2), [keep])
    torch.testing.assert_close(half * 2, full)


def test_training_on_it_learns_to_rebuild(
    student: SegmentationNetwork, rebuilder: Rebuilder, batch: tuple[Tensor, Tensor, Tensor]
) -> None:
    labels = torch.zeros(1, *CROP, dtype=torch.long)
    labels[:, :, 48:] = 1
    images, weight = batch[0][:1] * 0.3 + labels[:, None] * 2.0 - 1.0, torch.ones(1, *CROP)
    optimizer = torch.optim.AdamW([*student.parameters(), *rebuilder.parameters()], lr=5e-3)
    losses, draws = [], StepRng(2)
    for _ in range(16):
        loss = mfm_loss(student, rebuilder, images, labels, weight, draws)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert min(losses[-3:]) < losses[0] * 0.7
