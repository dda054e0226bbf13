"""Entropy, cross-entropy with probabilities, shares of pixels: against torch's own, and only where pixels count."""

import torch
from torch.distributions import Categorical
from torch.nn import functional as F

from adapters.self_training.pseudo_labels import confident_share, entropy, mean_over, soft_cross_entropy

LOGITS = torch.randn(2, 5, 6, 7, generator=torch.Generator().manual_seed(0))
EVERYWHERE = torch.ones(2, 6, 7, dtype=torch.bool)
LEFT = EVERYWHERE.clone()
LEFT[:, :, 3:] = False


def test_entropy_is_that_of_the_categorical_distribution() -> None:
    each = Categorical(logits=LOGITS.movedim(1, -1)).entropy()  # [B, H, W]
    torch.testing.assert_close(entropy(LOGITS, EVERYWHERE), each.mean())
    torch.testing.assert_close(entropy(LOGITS, LEFT), each[:, :, :3].mean())


def test_entropy_of_a_sure_and_of_an_even_prediction() -> None:
    assert entropy(1e4 * F.one_hot(torch.zeros(1, 2, 2).long(), 3).movedim(-1, 1), EVERYWHERE[:1, :2, :2]) == 0.0
    even = entropy(torch.zeros(1, 4, 2, 2), EVERYWHERE[:1, :2, :2])
    torch.testing.assert_close(even, torch.tensor(4.0).log())


def test_entropy_of_half_precision_logits_is_computed_in_float32() -> None:
    assert entropy(LOGITS.bfloat16(), EVERYWHERE).dtype == torch.float32


def test_soft_cross_entropy_of_one_class_is_cross_entropy() -> None:
    labels = LOGITS.flip(0).argmax(1)
    one_hot = F.one_hot(labels, 5).movedim(-1, 1).float()
    torch.testing.assert_close(soft_cross_entropy(LOGITS, one_hot, EVERYWHERE), F.cross_entropy(LOGITS, labels))


def test_soft_cross_entropy_with_itself_is_the_entropy() -> None:
    torch.testing.assert_close(soft_cross_entropy(LOGITS, LOGITS.softmax(1), LEFT), entropy(LOGITS, LEFT))


def test_confident_share_counts_only_counted_pixels() -> None:
    probabilities = torch.tensor([0.9, 0.1]).view(1, 2, 1, 1).repeat(1, 1, 2, 4)
    probabilities[:, :, :, 2:] = 0.5
    left = torch.tensor([True, True, True, False]).expand(1, 2, 4)
    torch.testing.assert_close(confident_share(probabilities, left, 0.9), torch.tensor(2 / 3))


def test_nothing_counted_is_zero_and_has_a_finite_gradient() -> None:
    logits = LOGITS.clone().requires_grad_()
    loss = entropy(logits, ~EVERYWHERE)
    loss.backward()
    assert loss.item() == 0.0 and not logits.grad.any()
    assert mean_over(torch.ones(2, 6, 7), ~EVERYWHERE) == 0.0
