"""Binary cross-entropy by class: the definition with nested classes, two classes, wrong settings."""

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from adapters.networks.training_pass import IGNORE_INDEX, weighted_cross_entropy
from adapters.self_training.class_bce import ClassBce, members_of
from configs.terms import ClassBceSettings, MfmDaClassBce

NAMES = ("ground", "disc", "cup", "spot")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def drawn(classes: int = 4, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits [2, K, 3, 5], labels with an ignored pixel, weights."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(2, classes, 3, 5, generator=generator)
    labels = torch.randint(0, classes, (2, 3, 5), generator=generator)
    labels[0, 0, 0] = IGNORE_INDEX
    return logits, labels, torch.rand(2, 3, 5, generator=generator)


def nested_loss(*pairs: tuple[str, str]) -> ClassBce:
    return ClassBce(members_of(NAMES, ClassBceSettings(enabled=True, nested=pairs).around()))


def test_each_class_is_a_question_whose_probability_includes_what_lies_inside() -> None:
    """A cup inside a disc, a spot inside the cup: the disc's question is answered by all three."""
    logits, labels, weight = drawn()
    inside = ([0], [1, 2, 3], [2, 3], [3])
    probabilities, total = logits.softmax(dim=1), torch.zeros(2, 3, 5)
    for columns in inside:
        asked = probabilities[:, columns].sum(dim=1).clamp(0, 1)
        truth = sum((labels == column).float() for column in columns)
        total += F.binary_cross_entropy(asked, truth, reduction="none") / 4
    expected = (total * (labels != IGNORE_INDEX) * weight).mean()
    loss = nested_loss(("disc", "cup"), ("cup", "spot"))
    torch.testing.assert_close(loss(logits, labels, weight), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(loss(logits, labels), loss(logits, labels, torch.ones_like(weight)))


def test_of_two_classes_it_is_the_cross_entropy() -> None:
    logits, labels, weight = drawn(classes=2)
    loss = ClassBce(members_of(("background", "vessel"), {}))
    torch.testing.assert_close(loss(logits, labels, weight), weighted_cross_entropy(logits, labels, weight))


def test_it_teaches_masks_in_which_the_cup_lies_in_its_disc() -> None:
    """Descent on free logits ends at the labels, also from answers that are sure and wrong."""
    labels = torch.tensor([[[0, 1, 2, 3]]])
    logits = 30.0 * F.one_hot((labels + 1) % 4, 4).permute(0, 3, 1, 2).float()
    logits.requires_grad_(True)
    loss, optimizer = nested_loss(("disc", "cup")), torch.optim.Adam([logits], lr=3.0)
    for _ in range(25):
        optimizer.zero_grad()
        loss(logits, labels).backward()
        assert logits.grad is not None and logits.grad.isfinite().all()
        optimizer.step()
    assert torch.equal(logits.argmax(dim=1), labels)


def test_nested_classes_without_the_loss_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"nested: has no effect while enabled is false; set enabled to true"):
        MfmDaClassBce(enabled=False, nested=(("a", "b"),))
    with pytest.raises(ValidationError, match=r"nested: has no effect while enabled is false"):
        ClassBceSettings(nested=(("a", "b"),))
    assert MfmDaClassBce(nested=(("a", "b"),)).enabled


def test_a_class_inside_itself_is_refused() -> None:
    with pytest.raises(ValidationError, match=r"nested: 'a' is inside itself; remove one of its pairs"):
        ClassBceSettings(enabled=True, nested=(("a", "b"), ("b", "c"), ("c", "a")))
    assert ClassBceSettings(enabled=True, nested=(("a", "b"), ("b", "c"))).around() == {"b": {"a"}, "c": {"a", "b"}}
