"""Weights of pseudo-labels by class: the rule against sorted lists, what follows over steps, who sees the weights."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.networks.training_pass import IGNORE_INDEX
from adapters.recipes.class_confidence import ClassConfidence
from adapters.recipes.recipe import Recipe
from adapters.recipes.self_training import Answer, StepImages
from adapters.self_training.pseudo_labels import PseudoLabel
from tests.adapters.recipes.recipe_steps import CLASSES, batch, inputs_of, network, recipe_of
from tests.sections import recipe_settings

ON = {"class_confidence": {"enabled": True}}
COUNTS = (1000, 300, 40, 0)
"""Pixels of each class."""


def term(quantile: float = 0.5, momentum: float = 0.99, threshold: float = 0.968) -> ClassConfidence:
    settings = {"class_confidence": {"enabled": True, "quantile": quantile, "momentum": momentum}}
    return ClassConfidence(inputs_of(network(), threshold=threshold, **settings))


def confidences(seed: int = 0) -> list[np.ndarray]:
    """Confidences of each class, in the middle of a bin: class 0 is sure, class 1 is not, class 2 is between."""
    generator = np.random.default_rng(seed)
    drawn = [generator.beta(high, 2, count) for high, count in zip((60, 3, 20, 1), COUNTS, strict=True)]
    return [(np.floor(values * 1000) + 0.5) / 1000 for values in drawn]


def weighed(found: ClassConfidence, images: StepImages) -> PseudoLabel:
    """The pseudo-label as the terms of a step read it."""
    return found.prepare(inputs_of(network()), images).pseudo


def images_of(values: list[np.ndarray]) -> StepImages:
    confidence = torch.tensor(np.concatenate(values), dtype=torch.float32).view(1, 1, -1)
    labels = torch.arange(CLASSES).repeat_interleave(torch.tensor([len(part) for part in values])).view(1, 1, -1)
    trusted = torch.ones_like(labels, dtype=torch.bool)
    pseudo = PseudoLabel(labels, torch.full_like(confidence, 0.3), torch.tensor(0.3), confidence, trusted)
    return StepImages(torch.zeros(1, 3, 1, labels.shape[-1]), trusted, Answer(lambda: pseudo), None, None)


def expected(values: np.ndarray, quantile: float, threshold: float = 0.968) -> float:
    """The share of a sorted list above the lower one of the threshold and the list's own quantile."""
    if not len(values):
        return 0.0
    least = int(np.ceil((1 - quantile) * len(values)))  # so many must count
    own = np.sort(values)[::-1][least - 1] if least else 1.0
    return float(np.mean(np.floor(values * 1000) >= np.floor(min(own, threshold) * 1000)))


@pytest.mark.parametrize("quantile", [0.25, 0.5, 0.8])
def test_the_weight_of_a_class_is_the_share_of_its_pixels_that_are_confident_for_it(quantile: float) -> None:
    found, values = term(quantile), confidences()
    pseudo = weighed(found, images_of(values))
    wanted = [expected(part, quantile) for part in values]
    torch.testing.assert_close(found.class_weights(), torch.tensor(wanted), rtol=1e-5, atol=1e-6)
    assert wanted[0] > wanted[1] >= 1 - quantile and wanted[3] == 0.0
    assert torch.equal(pseudo.weight, found.class_weights()[pseudo.labels])
    assert pseudo.kept_ratio == 0.3, "what is reported is the share of the whole batch"


def test_at_quantile_0_every_pixel_counts_and_at_1_only_the_threshold_does() -> None:
    for quantile, wanted in ((0.0, [1.0, 1.0, 1.0, 0.0]), (1.0, [expected(part, 1.0) for part in confidences()])):
        found = term(quantile)
        weighed(found, images_of(confidences()))
        torch.testing.assert_close(found.class_weights(), torch.tensor(wanted), rtol=1e-5, atol=1e-6)


def test_histograms_follow_with_momentum() -> None:
    found = term(momentum=0.5)
    for seed in range(2):
        weighed(found, images_of(confidences(seed)))
    counts = [np.bincount(np.floor(part * 1000).astype(int), minlength=1001) for part in confidences(0)]
    later = [np.bincount(np.floor(part * 1000).astype(int), minlength=1001) for part in confidences(1)]
    np.testing.assert_allclose(found.histogram, 0.5 * np.array(counts) + np.array(later))


def test_padding_is_not_counted_and_margins_are_counted_and_weigh_nothing() -> None:
    found, images = term(), images_of(confidences())
    images.pseudo.labels[..., :100] = IGNORE_INDEX
    images.pseudo.trusted[..., :200] = False
    pseudo = weighed(found, images)
    assert found.histogram.sum() == sum(COUNTS) - 100
    assert pseudo.weight[..., :200].eq(0).all() and pseudo.weight[..., 200:].gt(0).all()


def test_every_term_of_the_step_sees_the_weights() -> None:
    recipe = recipe_of(network(), classmix=False, threshold=0.968, complementary={"enabled": True}, mfm=True, **ON)
    losses = recipe.step(batch()).losses
    assert list(losses) == ["source", "mix", "complementary", "complementary_distance", "mfm"]
    target = normalise_unit(to_unit(batch().target.images))
    labels, weights = recipe.teacher(target).argmax(1), weights_of(recipe)
    loss = F.cross_entropy(network()(target), labels, reduction="none")
    torch.testing.assert_close(losses["mix"], (weights[labels] * loss).mean().detach())
    assert weights.unique().numel() > 2


def weights_of(recipe: Recipe) -> torch.Tensor:
    module = recipe.modules()["class_confidence"]
    assert isinstance(module, ClassConfidence)
    assert not [*module.parameters()]
    return module.class_weights()


def test_it_is_off_and_then_the_weight_is_one_number() -> None:
    assert not recipe_settings().advanced.class_confidence.enabled
    assert "class_confidence" not in recipe_of(network()).modules()
