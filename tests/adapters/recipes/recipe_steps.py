"""What tests of recipes are made of: tiny networks, drawn batches, gradients."""

import copy
from typing import Any

import torch
from accelerate import Accelerator

from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.recipes.build import build_recipe
from adapters.recipes.recipe import Recipe, RecipeInputs, StepBatch, StepLosses
from adapters.sampling.streams import SourceBatch, TargetBatch
from configs.mfm import MfmSettings
from configs.network import Architecture
from tests.sections import recipe_settings, section

CLASSES, CROP = 4, (64, 96)
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=16),
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny"),
}
PLAIN: dict[str, Any] = {"threshold": 0.0, "jitter_probability": 0.0, "blur_probability": 0.0}
"""Every pseudo-label counts in full, and nothing is jittered or blurred."""


def network(name: str = "daformer", seed: int = 0) -> SegmentationNetwork:
    """A tiny network with random weights, in train mode; mit_tiny has no drop path."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    return build_network(NETWORKS[name].model_copy(update={"dropout": 0.0}), CLASSES).train()


def inputs_of(
    student: SegmentationNetwork,
    *,
    reference: SegmentationNetwork | None = None,
    mfm: bool = False,
    **recipe: Any,
) -> RecipeInputs:
    """What a recipe with the settings `recipe` is built from; `class 0` to `class 3`."""
    settings = section(MfmSettings, dim=32, heads=4, blocks=1)
    torch.manual_seed(1)
    rebuilder = build_rebuilder(student, CROP, settings) if mfm else None
    return RecipeInputs(
        student=student,
        rebuilder=rebuilder,
        released=None,
        recipe=recipe_settings(**{**PLAIN, **recipe}),
        mfm=settings,
        class_names=tuple(f"class {index}" for index in range(CLASSES)),
        accelerator=Accelerator(cpu=True),
        draws=StepRng(2),
        reference=reference,
    )


def recipe_of(student: SegmentationNetwork, **settings: Any) -> Recipe:
    """The recipe that `settings` (of `inputs_of`) name."""
    return build_recipe(inputs_of(student, **settings))


def frozen(student: SegmentationNetwork, seed: int | None = None) -> SegmentationNetwork:
    """A frozen copy of `student`, or with `seed` a frozen network of its kind with other weights."""
    other = copy.deepcopy(student) if seed is None else network("daformer", seed)
    return other.requires_grad_(False).eval()


def batch(size: int = 2, *, source: bool = True, seed: int = 3) -> StepBatch:
    """Noise with blocky labels: squares of 32 pixels, so that cells of the deepest map hold one class."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (2, size, *CROP, 3), dtype=torch.uint8, generator=generator)
    blocks = torch.randint(0, CLASSES, (size, CROP[0] // 32, CROP[1] // 32), dtype=torch.uint8, generator=generator)
    labels = blocks.repeat_interleave(32, 1).repeat_interleave(32, 2)
    valid = torch.ones(size, *CROP, dtype=torch.bool)
    return StepBatch(TargetBatch(images[0], valid, valid), SourceBatch(images[1], labels) if source else None)


def gradients(student: SegmentationNetwork) -> list[torch.Tensor]:
    """Copies of all gradients; zeros where there is none."""
    return [
        torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
        for parameter in student.parameters()
    ]


def train(student: SegmentationNetwork, steps: int = 3, **settings: Any) -> list[StepLosses]:
    """Some optimizer steps of the recipe that `settings` name, each on another batch."""
    recipe = recipe_of(student, **settings)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    results = []
    for step in range(steps):
        optimizer.zero_grad()
        results.append(recipe.step(batch(seed=step)))
        optimizer.step()
    return results
