"""The contract of a recipe: the input of a step, its report, and what a round may ask of it."""

import copy
from abc import ABC, abstractmethod
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, TypeVar

import torch
from accelerate.accelerator import Accelerator
from accelerate.utils.dataclasses import AutocastKwargs
from torch import Tensor, nn

from adapters.augmentation.augment import to_unit
from adapters.mfm.rebuilder import Rebuilder
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.sampling.streams import SourceBatch, TargetBatch
from configs.mfm import MfmSettings
from configs.recipe import RecipeBase

RecipeT_co = TypeVar("RecipeT_co", bound=RecipeBase, covariant=True)
"""Settings of a recipe."""


class StepBatch(NamedTuple):
    """Input of one step."""

    target: TargetBatch
    """Unlabelled crops."""
    source: SourceBatch | None = None
    """As many labelled crops of the same size; None when source-free."""


@dataclass(frozen=True, slots=True)
class StepLosses:
    """Report of one step. Everything stays on the device, so nothing inside the step waits for it."""

    losses: dict[str, Tensor]
    """Detached scalars by name, each with its factor."""
    kept_ratio: Tensor | None
    """Share of pseudo-label pixels above the threshold, a scalar (0-1); None for a step that needs no pseudo-labels."""


@dataclass(frozen=True, slots=True)
class RecipeInputs(Generic[RecipeT_co]):
    """Inputs of a recipe's constructor."""

    student: SegmentationNetwork
    """The network that learns, on the device, with the incumbent's weights."""
    rebuilder: Rebuilder | None
    """The Rebuilder of MFM; None: MFM is off."""
    released: SegmentationNetwork | None
    """The released version, frozen, in eval mode, on the device; None when the recipe does not need it."""
    recipe: RecipeT_co
    mfm: MfmSettings
    class_names: tuple[str, ...]
    """Names of the classes, by index."""
    accelerator: Accelerator
    draws: StepRng
    """Random numbers: mixes, augmentations, masks. Only dropout uses torch's own."""
    reference: SegmentationNetwork | None = None
    """The frozen network of feature distance, in eval mode, on the device; None without feature distance or source."""
    source_free: bool = False
    """Whether the round has no source images: batches have none, and the released weights hold the student."""
    target_images: int | None = None
    """Target images of the round; None: not counted."""
    class_weights: Tensor | None = None
    """Weight of each value of true labels, [256] on the device (`recipe.class_balance`); None: all equal."""

    def images(self, frames: Tensor) -> Tensor:
        """Convert [B, H, W, 3] bytes to [B, 3, H, W] in [0, 1] on the device."""
        return to_unit(self.on_device(frames))

    def on_device(self, tensor: Tensor) -> Tensor:
        """Move `tensor` to the device without waiting for it."""
        return tensor.to(self.accelerator.device, non_blocking=True)

    def label_weight(self, labels: Tensor) -> Tensor | None:
        """Return the loss weight of true `labels` [B, H, W], of the same shape; None: all equal."""
        return None if self.class_weights is None else self.class_weights[labels]

    def autocast(self) -> AbstractContextManager[Any]:
        """Return the context of mixed precision as configured, for forward passes."""
        context: AbstractContextManager[Any] = self.accelerator.autocast()
        return context

    def full_precision(self) -> AbstractContextManager[Any]:
        """Return the context, inside that of mixed precision, of computations that need float32."""
        context: AbstractContextManager[Any] = self.accelerator.autocast(AutocastKwargs(enabled=False))
        return context


class Recipe(ABC, Generic[RecipeT_co]):
    """One recipe. A step adds gradients to the parameters; the caller zeroes them and steps the optimizer.

    The constructor may freeze parameters of the student: the optimizer then gets what requires a gradient. The caller
    puts the student into train mode; a recipe that needs other modes sets them in `_prepare`.
    """

    learns = True
    """Whether the optimizer has anything to train."""
    restate = True
    """Whether the caller must estimate the BatchNorm statistics of the finished network again."""

    def __init__(self, inputs: RecipeInputs[RecipeT_co]) -> None:
        self.inputs = inputs
        self.student = inputs.student
        self.rebuilder = inputs.rebuilder
        self.steps = 0
        """Optimizer steps begun, over all rounds that shared this training state."""

    def step(self, *batches: StepBatch) -> StepLosses:
        """Begin an optimizer step and add the mean gradient of `batches` (several: gradient accumulation)."""
        self._prepare()
        self.steps += 1
        results = [self._backward(batch, 1.0 / len(batches)) for batch in batches]
        if len(results) == 1:
            return results[0]
        losses = {name: torch.stack([result.losses[name] for result in results]).mean() for name in results[0].losses}
        kept = [result.kept_ratio for result in results if result.kept_ratio is not None]
        return StepLosses(losses, torch.stack(kept).mean() if kept else None)

    def _prepare(self) -> None:
        """Bring the networks into the state of a step that begins; `steps` were done before it."""

    @abstractmethod
    def _backward(self, batch: StepBatch, share: float) -> StepLosses:
        """Add `share` times the gradient of the losses on `batch`."""

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Change the weights after the optimizer's step; nothing by default."""

    def finished(self) -> SegmentationNetwork:
        """Return the network that the training so far gives: a copy of the student, or its average.

        Training can continue whatever the caller does with it.
        """
        return copy.deepcopy(self.student)

    def modules(self) -> dict[str, nn.Module]:
        """Return everything with weights that must survive a restart, by name."""
        modules: dict[str, nn.Module] = {"student": self.student}
        return modules if self.rebuilder is None else {**modules, "rebuilder": self.rebuilder}

    def state_dict(self) -> dict[str, Any]:
        """Return counters and random state, to continue from."""
        return {"steps": self.steps, "draws": self.inputs.draws.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state`."""
        self.steps = int(state["steps"])
        self.inputs.draws.load_state_dict(state["draws"])
