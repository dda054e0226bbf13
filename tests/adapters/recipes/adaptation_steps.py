"""What tests of source-free recipes are made of: tiny networks, target batches, optimizer steps of a round."""

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
from adapters.rounds.inputs import load_inputs
from adapters.rounds.optim import build_optimizer
from adapters.rounds.training import Training
from adapters.sampling.streams import TargetBatch
from configs.mfm import MfmSettings
from configs.network import Architecture, OptimSettings
from configs.settings import Settings
from tests.sections import recipe_settings, section

CLASSES, CROP = 4, (64, 96)
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=16),
    "deeplabv2": Architecture(name="deeplabv2", encoder="resnet_tiny"),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16, output_stride=16),
}


def network(name: str = "deeplabv2", seed: int = 0) -> SegmentationNetwork:
    """A tiny network with random weights and statistics of noise, in eval mode."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    made = build_network(NETWORKS[name], CLASSES).train()
    with torch.no_grad():
        made(torch.randn(2, 3, *CROP))
    return made.eval()


def frozen(student: SegmentationNetwork) -> SegmentationNetwork:
    """The released version: a frozen copy in eval mode."""
    return copy.deepcopy(student).requires_grad_(False).eval()


def inputs_of(
    student: SegmentationNetwork,
    released: SegmentationNetwork | None = None,
    *,
    source_free: bool = True,
    mfm: bool = False,
    seed: int = 2,
    **recipe: Any,
) -> RecipeInputs:
    """What the recipe with the settings `recipe` is built from."""
    settings = section(MfmSettings, dim=32, heads=4, blocks=1)
    torch.manual_seed(1)
    return RecipeInputs(
        student=student,
        rebuilder=build_rebuilder(student, CROP, settings) if mfm else None,
        released=released,
        recipe=recipe_settings(**recipe),
        mfm=settings,
        class_names=tuple(f"class {index}" for index in range(CLASSES)),
        accelerator=Accelerator(cpu=True),
        draws=StepRng(seed),
        source_free=source_free,
    )


def recipe_of(student: SegmentationNetwork, released: SegmentationNetwork | None = None, **settings: Any) -> Recipe:
    """The recipe that `settings` (of `inputs_of`) name."""
    return build_recipe(inputs_of(student, released, **settings))


def batch(size: int = 2, seed: int = 3, padding: int = 0) -> StepBatch:
    """Noise whose brightness changes from left to right; the last `padding` columns are not valid."""
    generator = torch.Generator().manual_seed(seed)
    light = torch.linspace(0.2, 1.0, CROP[1]).view(1, 1, -1, 1)
    images = (torch.randint(0, 256, (size, *CROP, 3), generator=generator) * light).to(torch.uint8)
    valid = torch.ones(size, *CROP, dtype=torch.bool)
    valid[:, :, CROP[1] - padding :] = False
    return StepBatch(TargetBatch(images, valid, valid))


def adapt(recipe: Recipe, steps: int, *, rate: float = 1e-3, seed: int = 3) -> list[StepLosses]:
    """Optimizer steps as `adapters.rounds.training` makes them, each on a batch of its own."""
    settings = section(OptimSettings, learning_rate=rate, head_multiplier=1.0, weight_decay=0.0)
    optimizer = None
    if recipe.learns:
        optimizer = build_optimizer(recipe.student, settings, rebuilder=recipe.rebuilder, rebuilder_lr=rate)
    results = []
    for step in range(steps):
        if optimizer is not None:
            optimizer.zero_grad()
        results.append(recipe.step(batch(seed=seed + step)))
        if optimizer is not None:
            optimizer.step()
            recipe.after_step(optimizer)
    return results


def weights(student: SegmentationNetwork) -> dict[str, torch.Tensor]:
    """Copies of all parameters by name."""
    return {name: parameter.detach().clone() for name, parameter in student.named_parameters()}


def changed(before: dict[str, torch.Tensor], student: SegmentationNetwork) -> set[str]:
    """Names of the parameters that are not as `before`."""
    return {name for name, weight in weights(student).items() if not torch.equal(weight, before[name])}


def training_of(state: Any, **sections: Any) -> Training:
    """What the process of a round trains with; `state` is the fixture `training_state`, `sections` its settings."""
    spec = state.round(**sections).spec()
    return Training(load_inputs(spec, Settings.model_validate(spec.settings)))
