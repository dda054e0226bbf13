"""The step that DACS, DAFormer, HRDA and MIC share: an EMA teacher, its pseudo-labels, and losses one after another.

A recipe is the list of its losses (`Term`). Each is back-propagated by itself, so that only one forward pass holds its
activations at a time (as in the published code of DAFormer).
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from adapters.augmentation.augment import normalise_unit
from adapters.networks.network import SegmentationNetwork
from adapters.networks.training_pass import Encoded, PixelLoss, outputs_loss, weighted_cross_entropy
from adapters.recipes.recipe import Recipe, RecipeInputs, StepBatch, StepLosses
from adapters.self_training.class_bce import ClassBce, members_of
from adapters.self_training.pseudo_labels import PseudoLabel, pseudo_label
from adapters.self_training.teacher import Teacher
from configs.recipe import SelfTrainingSettings


class Anchor:
    """After each step: weight <- weight - learning rate * strength * (weight - released weight).

    Decoupled from the gradient, as AdamW's weight decay is, so that Adam's scaling does not change its strength.
    """

    def __init__(self, student: SegmentationNetwork, released: SegmentationNetwork | None, strength: float) -> None:
        """Prepare the pull; 0 is none. Raises ValueError without released weights."""
        self._strength = strength
        self._released: dict[Tensor, Tensor] = {}
        if strength == 0.0:
            return
        if released is None:
            raise ValueError(f"a pull of {strength} towards the released weights needs the released version")
        self._released = dict(zip(student.parameters(), released.parameters(), strict=True))

    @torch.no_grad()
    def pull(self, optimizer: torch.optim.Optimizer) -> None:
        """Move the parameters in `optimizer` by one step; the Rebuilder's have no released weights and stay."""
        for group in optimizer.param_groups:
            mine = [parameter for parameter in group["params"] if parameter in self._released]
            if mine:
                theirs = [self._released[parameter] for parameter in mine]
                # at most the whole way: beyond it the weights would swing around the released ones and diverge
                torch._foreach_lerp_(mine, theirs, min(1.0, group["lr"] * self._strength))


@dataclass(frozen=True, slots=True)
class Supervised:
    """A pass of the student over labelled pixels, before its loss is computed."""

    name: str
    """Name of the loss: source or mix."""
    encoded: Encoded
    labels: Tensor
    """[B, H, W] int64."""
    weight: Tensor | None
    """Loss weight of each pixel, [B, H, W]; None: all 1."""
    true: Tensor | None = None
    """Which labels are true, the others are the teacher's, bool [B, H, W]; None: all are."""
    loss: PixelLoss = weighted_cross_entropy
    """How logits are compared with labels (`recipe.advanced.class_bce`)."""


def plain_loss(inputs: RecipeInputs[Any], seen: Supervised) -> dict[str, Tensor]:
    """Return the plain loss of a pass, under its name."""
    outputs = inputs.student.outputs(seen.encoded.features, seen.encoded.views, seen.encoded.size)
    return {seen.name: outputs_loss(outputs, seen.labels, seen.weight, seen.loss)}


class Answer:
    """The teacher's answer for a batch, computed when a term first reads it: steps of MFM-DA never do."""

    def __init__(self, compute: Callable[[], PseudoLabel]) -> None:
        self._compute = compute
        self.given: PseudoLabel | None = None
        """The answer; None before it is read."""

    def __call__(self) -> PseudoLabel:
        """Return the answer."""
        if self.given is None:
            self.given = self._compute()
        return self.given


@dataclass(frozen=True, slots=True)
class StepImages:
    """A batch on the device, with the teacher's answer."""

    target: Tensor
    """Clean target crops, [B, 3, H, W] in [0, 1]."""
    valid: Tensor
    """Where they hold image, not padding, bool [B, H, W]."""
    answer: Answer
    """The teacher's answer for them; read it as `pseudo`."""
    source: Tensor | None
    """Source crops, [B, 3, H, W] in [0, 1]; None when source-free."""
    source_labels: Tensor | None
    """Their labels, [B, H, W] int64."""
    teacher: SegmentationNetwork | None = None
    """The network that gave the answer."""
    step: int = 1
    """Number of the optimizer step, from 1, over all rounds that shared this training state; with separate steps, of
    the turn of all losses."""
    compare: Callable[[RecipeInputs[Any], Supervised], dict[str, Tensor]] = plain_loss
    """Losses of the passes over source and mix, by name; `compared` calls it."""
    loss: PixelLoss = weighted_cross_entropy
    """How logits are compared with labels in these passes."""

    @property
    def pseudo(self) -> PseudoLabel:
        """The teacher's answer. Without it padding is known too (`valid`), and saves a pass of the teacher."""
        return self.answer()

    def compared(self, inputs: RecipeInputs[Any], seen: Supervised) -> dict[str, Tensor]:
        """Return the losses of a pass over labelled pixels, by name."""
        return self.compare(inputs, replace(seen, loss=self.loss))


def class_bce_of(inputs: RecipeInputs[SelfTrainingSettings]) -> PixelLoss:
    """Return the loss of labelled pixels that `recipe.advanced.class_bce` says: the cross-entropy, unless it is on."""
    settings = inputs.recipe.advanced.class_bce
    if not settings.enabled:
        return weighted_cross_entropy
    return ClassBce(members_of(inputs.class_names, settings.around()), inputs.accelerator.device)


Term = Callable[[RecipeInputs[Any], StepImages], dict[str, Tensor]]
"""Losses by name, each with its factor, that share a forward pass; empty when the batch has nothing for them.

The names are the same at every step: a term that pauses gives zeros.
"""


class TermModule(nn.Module):
    """A `Term` with weights or statistics of its own. They exist in training only: no version holds them.

    They are saved and resumed with the training state. The optimizer trains the weights at the rate of the student's
    decoder, those below an attribute `encoder` at that of its encoder. Call it as any term.
    """

    name: str
    """The term's name in `recipe.advanced`, and that of its file in the training state."""
    has_losses = True
    """Whether it has losses of its own; one that only prepares the batch has no step of its own (`separate_steps`)."""

    def prepare(self, inputs: RecipeInputs[Any], images: StepImages) -> StepImages:
        """Return the batch as all terms of the step see it: with other pseudo-labels, or another comparison.

        It runs once a batch: several times a step with gradient accumulation.
        """
        return images

    def forward(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return the term's own losses; none by default."""
        return {}


class SelfTraining(Recipe[SelfTrainingSettings]):
    """Update the teacher (not before the first step), then run the recipe's terms in order.

    The teacher labels the clean target when the first term reads its answer. With `recipe.advanced.separate_steps` each
    step runs the next one of the terms alone.

    Without source, terms that need source give nothing, and the student is pulled towards the released weights
    (`recipe.anchor_weight`).
    """

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings], terms: Sequence[Term]) -> None:
        super().__init__(inputs)
        self.teacher = Teacher(self.student, inputs.recipe.ema_decay)
        self._terms = terms
        self._modules = [term for term in terms if isinstance(term, TermModule)]
        self._turns = [term for term in terms if not isinstance(term, TermModule) or term.has_losses]
        self._separate = inputs.recipe.advanced.separate_steps
        self._loss = class_bce_of(inputs)
        strength = inputs.recipe.anchor_strength(source_free=inputs.source_free)
        self._anchor = Anchor(self.student, inputs.released, strength)

    def _prepare(self) -> None:
        self.teacher.update(self.student, self.steps)

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Pull the student towards the released weights."""
        self._anchor.pull(optimizer)

    def finished(self) -> SegmentationNetwork:
        """Return the teacher with the last step's student in it; its running statistics must still be estimated."""
        teacher = copy.deepcopy(self.teacher)
        teacher.update(self.student, self.steps)
        return teacher.network

    def modules(self) -> dict[str, nn.Module]:
        """Return student, teacher, Rebuilder, and terms that hold something."""
        return {**super().modules(), "teacher": self.teacher.network, **{term.name: term for term in self._modules}}

    def _images(self, batch: StepBatch) -> StepImages:
        inputs, source = self.inputs, batch.source
        target, valid = inputs.images(batch.target.images), inputs.on_device(batch.target.valid)

        def answer() -> PseudoLabel:
            with inputs.autocast():
                logits = self.teacher(normalise_unit(target))
            return pseudo_label(logits, valid, inputs.on_device(batch.target.trusted), inputs.recipe.threshold)

        return StepImages(
            target,
            valid,
            Answer(answer),
            inputs.images(source.images) if source is not None else None,
            inputs.on_device(source.labels).long() if source is not None else None,
            self.teacher.network,
            1 + (self.steps - 1) // len(self._turns) if self._separate else self.steps,
            loss=self._loss,
        )

    def _due(self) -> Sequence[Term]:
        """Return the terms of this step: all, or the one whose turn it is."""
        if not self._separate:
            return self._terms
        return [self._turns[(self.steps - 1) % len(self._turns)]]

    def _backward(self, batch: StepBatch, share: float) -> StepLosses:
        images, found = self._images(batch), dict[str, Tensor]()
        answer = images.answer
        for module in self._modules:
            images = module.prepare(self.inputs, images)
        for term in self._due():
            losses = term(self.inputs, images)
            if any(loss.requires_grad for loss in losses.values()):
                self.inputs.accelerator.backward(share * torch.stack(list(losses.values())).sum())
            found |= {name: loss.detach() for name, loss in losses.items()}
        return StepLosses(found, None if answer.given is None else answer.given.kept_ratio)
