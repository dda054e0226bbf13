"""The EMA teacher: its weights, its modes, and that nothing trains it."""

import pytest
import torch
from torch import nn

from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.self_training.teacher import Teacher
from configs.network import Architecture


@pytest.fixture(params=["mit_tiny", "resnet_tiny"])
def student(request: pytest.FixtureRequest) -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    name = "daformer" if request.param == "mit_tiny" else "deeplabv3plus"
    settings = Architecture(name=name, encoder=request.param, channels=16, output_stride=16)
    return build_network(settings, 3).train()


def shift(network: nn.Module, by: float) -> None:
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += by


def gap(teacher: Teacher, student: nn.Module) -> float:
    pairs = zip(teacher.network.parameters(), student.parameters(), strict=True)
    return float(torch.stack([(mine - theirs).detach().abs().max() for mine, theirs in pairs]).max())


def test_starts_as_an_independent_copy(student) -> None:
    teacher = Teacher(student, 0.99)
    assert gap(teacher, student) == 0.0
    shift(student, 1.0)
    assert gap(teacher, student) == pytest.approx(1.0)


@pytest.mark.parametrize(("step", "kept"), [(0, 1.0), (1, 0.5), (3, 0.75), (99, 0.99), (5000, 0.99)])
def test_decay_ramps_up_to_alpha(student, step, kept) -> None:
    """alpha_t = min(1 - 1/(t + 1), 0.99); nothing moves at step 0."""
    teacher = Teacher(student, 0.99)
    shift(student, 1.0)
    teacher.update(student, step)
    assert gap(teacher, student) == pytest.approx(kept, abs=1e-5)


def test_never_trains(student) -> None:
    teacher = Teacher(student, 0.99)
    logits = teacher(torch.rand(2, 3, 32, 32))
    assert not logits.requires_grad
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())
    assert all(parameter.requires_grad for parameter in student.parameters())


def test_answers_repeat_although_it_is_in_train_mode(student) -> None:
    """Dropout and drop path are off."""
    teacher = Teacher(student, 0.99)
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(teacher(images), teacher(images))


def test_normalises_with_the_statistics_of_the_target_batch(student) -> None:
    """Running statistics of another domain do not reach the pseudo-labels; the student's stay as they are."""
    images = torch.rand(2, 3, 32, 32)
    expected = Teacher(student, 0.99)(images)
    for layer in student.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean += 100.0
    before = [buffer.clone() for buffer in student.buffers()]
    assert torch.equal(Teacher(student, 0.99)(images), expected)
    assert all(torch.equal(*pair) for pair in zip(before, student.buffers(), strict=True))


def test_one_image_a_batch_works(student) -> None:
    assert Teacher(student, 0.99)(torch.rand(1, 3, 32, 32)).isfinite().all()
