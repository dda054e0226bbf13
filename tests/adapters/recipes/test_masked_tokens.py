"""Masked tokens: which tokens are hidden, before the position code; what learns; which encoders have tokens."""

import copy

import pytest
import torch
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit, to_unit
from adapters.errors import NetworkMismatch
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.recipes.masked_tokens import MaskedTokens
from adapters.rounds.optim import build_optimizer
from configs.network import Architecture, OptimSettings
from tests.adapters.recipes.recipe_steps import CLASSES, batch, network, recipe_of

TOKENS = {"name": "mic", "feature_distance_weight": 0.0, "rare_class_sampling": False, "masked_tokens": True}


def vit(encoder: str = "dinov2_tiny") -> SegmentationNetwork:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return build_network(Architecture(name="light", encoder=encoder), CLASSES).train()


@pytest.mark.parametrize("encoder", ["dinov2_tiny", pytest.param("dinov3_tiny", marks=pytest.mark.nightly)])
def test_tokens_are_replaced_before_their_position_code(encoder: str) -> None:
    student, patches = vit(encoder), []
    recipe = recipe_of(student, **TOKENS, masked_image_ratio=0.7)
    term = recipe.modules()["masked_tokens"]
    assert isinstance(term, MaskedTokens)
    torch.nn.init.normal_(term.encoder.weight)
    expected_student, token = copy.deepcopy(student), term.encoder.weight.detach()
    term.encoder.register_forward_hook(lambda _, given, found: patches.append((given[0].detach(), found.detach())))
    losses = recipe.step(batch()).losses
    ((seen, found),) = patches
    hidden = (found == token).all(2)
    assert 0.55 < hidden.float().mean() < 0.85 and not torch.equal(hidden[0], hidden[1])
    assert torch.equal(found[~hidden], seen[~hidden])
    images = normalise_unit(to_unit(batch().target.images))
    labels = recipe.teacher(images).argmax(1)
    with expected_student.encoder.hiding(lambda plain: torch.where(hidden.unsqueeze(2), token, plain)):
        expected = F.cross_entropy(expected_student(images), labels)
    torch.testing.assert_close(losses["masked_image"], expected.detach())
    assert not torch.isclose(expected, F.cross_entropy(expected_student(images), labels)), "only inside `hiding`"


def test_the_token_learns_as_the_encoder_and_is_in_no_version() -> None:
    student = vit()
    recipe = recipe_of(student, **TOKENS)
    recipe.step(batch())
    term = recipe.modules()["masked_tokens"]
    assert term.encoder.weight.grad.any() and list(recipe.finished().state_dict()) == list(student.state_dict())
    groups = build_optimizer(student, OptimSettings(learning_rate=1e-3), added={"masked_tokens": term}).param_groups
    assert {group["name"]: group["lr"] for group in groups}["masked_tokens_encoder_no_decay"] == 1e-3


def test_an_encoder_without_tokens_of_its_own_is_refused() -> None:
    with pytest.raises(NetworkMismatch, match=r"masked_tokens hides tokens of a DINOv2 .* set it to false"):
        recipe_of(network(), **TOKENS)
