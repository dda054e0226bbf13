"""No step waits for the device: it runs on tensors that have no data at all.

On torch's `meta` device every operation only works out shapes. Whatever would make the recipe wait for a GPU cannot
run there: `.item()`, `.tolist()`, `bool(tensor)`, `.cpu()`, and shapes that depend on values (`nonzero`, `unique`,
indexing with a mask). Random numbers come from the CPU, and their way to the device must not be waited for either.
"""

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode

from adapters.augmentation.augment import normalise_unit
from adapters.mfm.rebuilder import build_rebuilder
from adapters.networks.build import build_network
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.recipes.build import RECIPES
from adapters.recipes.recipe import Recipe, RecipeInputs, StepBatch
from adapters.rounds.optim import build_optimizer
from adapters.sampling.streams import SourceBatch, TargetBatch
from configs.mfm import MfmSettings
from configs.network import Architecture, OptimSettings
from tests.adapters.recipes.added_terms import TERMS, TOGETHER, with_encoder
from tests.sections import recipe_settings, section

CLASSES, CROP, META = 4, (64, 96), torch.device("meta")
NETWORKS = {
    "daformer": Architecture(name="daformer", encoder="mit_tiny", channels=16),
    "light": Architecture(name="light", encoder="dinov2_tiny"),
    "deeplabv3plus": Architecture(name="deeplabv3plus", encoder="resnet_tiny", channels=16, output_stride=16),
}
AUGMENTED: dict[str, Any] = {"jitter_probability": 1.0, "blur_probability": 1.0, "anchor_weight": 0.1}
TEST_TIME = {recipe for recipe in RECIPES if recipe_settings(name=recipe).test_time}  # type: ignore[arg-type]
PARTS = ("dacs", "daformer", "omuda")
"""Recipes whose every step another case takes: MIC those of DAFormer, the one of all terms those of DACS and OMUDA."""
CASES: list[Any] = [(recipe, recipe not in TEST_TIME) for recipe in RECIPES if recipe not in PARTS]
CASES += [pytest.param(recipe, True, marks=pytest.mark.nightly) for recipe in PARTS]
CASES += [pytest.param(recipe, False, marks=pytest.mark.nightly) for recipe in RECIPES if recipe not in TEST_TIME]
"""Each recipe with all that it can have, which is more than it does without MFM."""


class Device(Accelerator):
    """An accelerator whose device holds no data."""

    @property
    def device(self) -> torch.device:
        return META


class CpuGenerator(torch.Generator):
    """A generator of the CPU, whatever device is asked for."""

    def __new__(cls, device: Any = None) -> "CpuGenerator":
        return super().__new__(cls, "cpu")

    def __init__(self, device: Any = None) -> None:
        pass


class Copies(TorchDispatchMode):
    """Notes copies from the CPU to the device that the recipe would wait for."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        upload = func is torch.ops.aten._to_copy.default and args[0].device.type == "cpu"
        if upload and kwargs.get("device") == META and not kwargs.get("non_blocking"):
            self.waited.append(f"_to_copy of {tuple(args[0].shape)}")
        return func(*args, **kwargs)


def on_meta(network: SegmentationNetwork) -> SegmentationNetwork:
    """Without data, but for the counters of BatchNorm: a recipe that needs them fetches them once, when built."""
    network.to(META)
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            layer.num_batches_tracked = torch.zeros((), dtype=torch.long)
    return network


def recipe_of(name: str, *, mfm: bool, network: str = "daformer", **terms: Any) -> Recipe:
    torch.set_num_threads(1)
    settings = NETWORKS[network].model_copy(update={"multi_resolution": name == "hrda"})
    student, frozen = (on_meta(build_network(settings, CLASSES)) for _ in range(2))
    mfm_settings = section(MfmSettings, dim=32, heads=4, blocks=1)
    test_time = recipe_settings(name=name).test_time  # type: ignore[arg-type]
    recipe = RECIPES[name](
        RecipeInputs(
            student=student,
            rebuilder=build_rebuilder(student, CROP, mfm_settings) if mfm else None,
            released=frozen.requires_grad_(False).eval(),
            recipe=recipe_settings(name=name, **({} if test_time else AUGMENTED | terms)),  # type: ignore[arg-type]
            mfm=mfm_settings,
            class_names=tuple(f"class {index}" for index in range(CLASSES)),
            accelerator=Device(cpu=True),
            draws=StepRng(0),
            reference=frozen,
        )
    )
    student.train()
    return recipe


def batch(*, source: bool) -> StepBatch:
    images = torch.zeros(2, *CROP, 3, dtype=torch.uint8)
    valid = torch.ones(2, *CROP, dtype=torch.bool)
    labels = torch.zeros(2, *CROP, dtype=torch.uint8)
    return StepBatch(TargetBatch(images, valid, valid), SourceBatch(images, labels) if source else None)


def run_steps(recipe: Recipe, crops: StepBatch) -> Copies:
    """A step, not the first one, which has no teacher update; then what follows the optimizer's step."""
    normalise_unit(torch.zeros(1, 3, 1, 1, device=META))  # its constants get to the device once, and stay
    recipe.steps = 1
    optimizer = build_optimizer(recipe.student, OptimSettings(), rebuilder=recipe.rebuilder) if recipe.learns else None
    with Copies() as copies:
        losses = recipe.step(crops)
        recipe.after_step(optimizer)
    assert all(loss.device == META for loss in losses.losses.values())
    if losses.kept_ratio is not None:  # of a step that learns pseudo-labels
        assert losses.kept_ratio.device == META
    return copies


@pytest.fixture(autouse=True)
def meta_as_a_gpu(monkeypatch) -> None:
    """What libraries do for a GPU and not for meta: generators of its own (CoTTA's masks), copies without waiting."""
    blur = sys.modules["kornia.filters.gaussian"]  # the package has a function of that name
    monkeypatch.setattr(blur, "_to_device_nonblocking", lambda value, device: value.to(device, non_blocking=True))
    monkeypatch.setattr(torch, "Generator", CpuGenerator)


def test_no_term_that_can_be_added_needs_data_from_the_device(tmp_path: Path) -> None:
    terms = with_encoder(TOGETHER, tmp_path)
    terms["complementary"] = {**terms["complementary"], "by_region": True}
    recipe = recipe_of("dacs", mfm=True, thing_classes=["class 1"], **terms)
    copies = run_steps(recipe, batch(source=True))
    assert not copies.waited, f"a GPU would be waited for: {copies.waited}"
    without = {"complementary", "class_bce", "translation"}
    assert set(recipe.modules()) == {"student", "teacher", "rebuilder", *TERMS} - without


@pytest.mark.parametrize(("name", "mfm"), CASES)
def test_a_step_needs_no_data_from_the_device(name, mfm) -> None:
    recipe = recipe_of(name, mfm=mfm)
    copies = run_steps(recipe, batch(source=not recipe.inputs.recipe.test_time))
    assert not copies.waited
    if recipe.learns:
        assert any(parameter.grad is not None for parameter in recipe.student.parameters())


@pytest.mark.nightly
def test_masked_tokens_need_none() -> None:
    recipe = recipe_of("mic", mfm=True, network="light", masked_tokens=True, feature_distance_weight=0.0)
    assert not run_steps(recipe, batch(source=True)).waited


def test_convolutional_networks_and_source_free_steps_need_none_either() -> None:
    assert not run_steps(recipe_of("dacs", mfm=True, network="deeplabv3plus"), batch(source=False)).waited


@pytest.mark.parametrize(
    "wait",
    [
        lambda value: value.item(),
        lambda value: value.tolist(),
        lambda value: bool(value > 0),
        lambda value: value.cpu(),
        lambda value: value.reshape(1).nonzero(),
        lambda value: value.reshape(1)[value.reshape(1) > 0],
        lambda value: torch.unique(value),
    ],
)
def test_what_waits_for_the_device_fails_here(wait: Callable[[torch.Tensor], Any]) -> None:
    """The proof can fail: a loss term that reads a number back is caught."""
    recipe = recipe_of("dacs", mfm=False)
    assert hasattr(recipe, "_terms")

    def term(_inputs: Any, images: Any) -> dict[str, torch.Tensor]:
        wait(images.pseudo.kept_ratio)
        return {}

    recipe._terms = [term]
    with warnings.catch_warnings(), pytest.raises((RuntimeError, NotImplementedError)):
        warnings.simplefilter("ignore")
        recipe.step(batch(source=True))


def test_a_copy_that_is_waited_for_is_noted() -> None:
    with Copies() as copies:
        torch.zeros(3).to(META)
        torch.zeros(3).to(META, non_blocking=True)
    assert copies.waited == ["_to_copy of (3,)"]
