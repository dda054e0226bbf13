"""Each switch of Masked Feature Modeling reaches exactly what it says, and the control is the plain pass."""

import copy

import pytest
import torch
from torch import Tensor, nn

from adapters.errors import AdapterError
from adapters.mfm.branch import mfm_loss
from adapters.mfm.feature_mask import draw_keep
from adapters.mfm.rebuilder import Rebuilder, build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.network import Output, SegmentationNetwork, View
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import weighted_cross_entropy
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.sections import section

CROP, CLASSES = (64, 96), 4
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=16, dropout=0.0),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16, dropout=0.0),
}
IMAGES = torch.randn(2, 3, *CROP, generator=torch.Generator().manual_seed(1))
LABELS = torch.randint(0, CLASSES, (2, *CROP), generator=torch.Generator().manual_seed(2))
WEIGHT = torch.rand(2, *CROP, generator=torch.Generator().manual_seed(3))
TARGETS = ("classify", "teacher_feature", "student_feature", "pixels", "mask_only")
REGRESSED = ("teacher_feature", "student_feature", "pixels")


def branch(name: str = "daformer", **switches: object) -> tuple[SegmentationNetwork, Rebuilder]:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    student = build_network(NETWORKS[name], CLASSES).train()
    return student, build_rebuilder(student, CROP, section(MfmSettings, dim=32, heads=4, blocks=1, **switches))


def loss_of(student: SegmentationNetwork, rebuilder: Rebuilder, seed: int = 4, **given: object) -> Tensor:
    torch.manual_seed(7)  # drop path
    return mfm_loss(student, rebuilder, IMAGES, LABELS, WEIGHT, StepRng(seed), teacher=copy.deepcopy(student), **given)


def reached(module: nn.Module) -> set[str]:
    return {name for name, value in module.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}


def everything(module: nn.Module) -> set[str]:
    return {name for name, _ in module.named_parameters()}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("target", TARGETS)
def test_every_target_reaches_exactly_its_parts(name: str, target: str) -> None:
    student, rebuilder = branch(name, reconstruction=target)
    loss_of(student, rebuilder).backward()
    assert reached(student.encoder), "kept cells are pasted, attended to, or both"
    assert reached(rebuilder) == everything(rebuilder), "token and every part of what there is"
    assert reached(student.decoder) == (
        everything(student.decoder) if rebuilder.settings.ablation.classifies else set()
    )
    idle = everything(student.encoder) - reached(student.encoder)
    if rebuilder.settings.ablation.classifies:
        assert idle == set()
    else:  # shallower maps are compared, not learnt from; MiT gives each a LayerNorm that the next stage does not read
        assert {entry.rsplit(".", 2)[1] for entry in idle} <= {"layer_norm"}


@pytest.mark.parametrize("target", ["classify", "mask_only"])
def test_detached_encoder_gets_nothing_and_the_rest_what_it_got(target: str) -> None:
    student, rebuilder = branch(reconstruction=target)
    loss_of(student, rebuilder).backward()
    detached, other = branch(reconstruction=target, detach_encoder=True)
    loss = loss_of(detached, other)
    loss.backward()
    assert reached(detached.encoder) == set()
    for one, same in zip((student.decoder, rebuilder), (detached.decoder, other), strict=True):
        for value, found in zip(one.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(found.grad, value.grad)


def test_detached_encoder_records_statistics_as_ever() -> None:
    found = []
    for detach in (False, True):
        student, rebuilder = branch("deeplabv3plus", detach_encoder=detach)
        before = {name: value.clone() for name, value in student.decoder.named_buffers()}
        first = {name: value.clone() for name, value in student.encoder.named_buffers() if "running" in name}
        loss_of(student, rebuilder)
        assert all(torch.equal(value, before[name]) for name, value in student.decoder.named_buffers())
        found.append(dict(student.encoder.named_buffers()))
        assert not any(torch.equal(found[-1][name], value) for name, value in first.items())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


@pytest.mark.parametrize("name", NETWORKS)
def test_frozen_decoder_passes_the_gradient_on_and_keeps_what_others_gave_it(name: str) -> None:
    student, rebuilder = branch(name)
    loss_of(student, rebuilder).backward()
    frozen, other = branch(name, freeze_decoder=True)
    weighted_cross_entropy(frozen.decode([level.detach() for level in frozen.encode(IMAGES)], CROP), LABELS).backward()
    given = {key: value.grad.clone() for key, value in frozen.decoder.named_parameters()}
    buffers = {key: value.clone() for key, value in frozen.decoder.named_buffers()}
    loss_of(frozen, other).backward()
    assert all(torch.equal(value.grad, given[key]) for key, value in frozen.decoder.named_parameters())
    assert all(torch.equal(value, buffers[key]) for key, value in frozen.decoder.named_buffers())
    assert all(value.requires_grad for value in frozen.parameters()), "later terms train the decoder again"
    for one, same in zip((student.encoder, rebuilder), (frozen.encoder, other), strict=True):
        for value, found in zip(one.parameters(), same.parameters(), strict=True):
            torch.testing.assert_close(found.grad, value.grad)


def test_frozen_decoder_thaws_after_an_error() -> None:
    student, rebuilder = branch(freeze_decoder=True)
    with pytest.raises(RuntimeError):
        mfm_loss(student, rebuilder, IMAGES, LABELS[:, :5], WEIGHT, StepRng(0))
    assert all(value.requires_grad for value in student.parameters())


@pytest.mark.parametrize("name", NETWORKS)
def test_control_without_masking_is_the_plain_pass_bit_for_bit(name: str) -> None:
    student, rebuilder = branch(name, mask_ratio=0.0)
    assert everything(rebuilder) == set()
    torch.manual_seed(7)
    plain = weighted_cross_entropy(copy.deepcopy(student)(IMAGES), LABELS, WEIGHT)
    assert torch.equal(loss_of(student, rebuilder), plain)


@pytest.mark.parametrize("target", REGRESSED)
def test_every_regression_learns(target: str) -> None:
    """On one batch with one mask; classification: test_mfm.py."""
    student, rebuilder = branch(reconstruction=target)
    keep = [draw_keep(student.encode(IMAGES)[-1], 16, 0.4, StepRng(0))]
    teacher = copy.deepcopy(student).eval()
    optimizer = torch.optim.AdamW([*student.parameters(), *rebuilder.parameters()], lr=3e-3)
    losses = []
    for _ in range(10):
        loss = mfm_loss(student, rebuilder, IMAGES, LABELS, WEIGHT, StepRng(0), keep, teacher)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_works_in_half_precision(target: str) -> None:
    student, rebuilder = branch("deeplabv3plus", reconstruction=target)
    full = loss_of(student, rebuilder)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        half = loss_of(student, rebuilder)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, full, rtol=0.05, atol=0.02)
    half.backward()
    assert all(value.grad is None or value.grad.isfinite().all() for value in student.parameters())


def test_teacher_features_need_a_teacher() -> None:
    student, rebuilder = branch(reconstruction="teacher_feature")
    with pytest.raises(AdapterError, match=r"ablation\.reconstruction: teacher_feature needs a recipe with a teacher"):
        mfm_loss(student, rebuilder, IMAGES, LABELS, WEIGHT, StepRng(0))


def test_teacher_is_not_trained() -> None:
    student, rebuilder = branch(reconstruction="teacher_feature")
    teacher = copy.deepcopy(student)
    mfm_loss(student, rebuilder, IMAGES, LABELS, WEIGHT, StepRng(0), teacher=teacher).backward()
    assert reached(teacher) == set()


class TwoViews(SegmentationNetwork):
    """Sees the image and its mirror, and predicts both."""

    def views(self, images: Tensor, draws: StepRng) -> tuple[View, ...]:
        return View(images, None), View(images.flip(-1), None)

    def outputs(self, features, views, size) -> tuple[Output, ...]:
        first, second = (self.decode(maps, size) for maps in features)
        return Output(first, None, 0.5), Output(second.flip(-1), None, 0.5)


@pytest.mark.parametrize("target", TARGETS)
def test_every_view_and_image_has_a_mask_of_its_own(target: str) -> None:
    plain, _ = branch()
    student = TwoViews(plain.encoder, plain.decoder, num_classes=CLASSES, feature_channels=plain.feature_channels)
    rebuilder = build_rebuilder(
        student, (128, 128), section(MfmSettings, dim=32, heads=4, blocks=1, reconstruction=target)
    )
    images = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    labels, masks, spy = torch.zeros(2, 128, 128, dtype=torch.long), [], rebuilder.fill
    rebuilder.fill = lambda deepest, keep: masks.append(keep) or spy(deepest, keep)
    rebuilder.register_forward_pre_hook(lambda _, given: masks.append(given[1]))
    loss = mfm_loss(student, rebuilder, images, labels, None, StepRng(1), teacher=student)
    loss.backward()
    different = {tuple(image.flatten().tolist()) for mask in masks for image in mask}
    assert len(different) == 4, "two images in two views"
    again = mfm_loss(student, rebuilder, images, labels, None, StepRng(1), teacher=student)
    torch.testing.assert_close(again, loss)
