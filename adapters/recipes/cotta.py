"""CoTTA: consistency with an averaged teacher, its answers averaged over augmentations, weights restored at random.

Wang et al., "Continual Test-Time Domain Adaptation" (CVPR 2022).
"""

import copy

import torch
from torch import Tensor, nn

from adapters.augmentation.augment import normalise_unit
from adapters.networks.network import Output, SegmentationNetwork
from adapters.networks.step_rng import SEEDS, StepRng
from adapters.networks.training_pass import encode, mean_over_outputs, part_of
from adapters.recipes.recipe import Recipe, RecipeInputs, StepBatch, StepLosses
from adapters.self_training.pseudo_labels import confident_share, soft_cross_entropy
from adapters.self_training.teacher import Teacher, average_over, mean_confidence
from configs.recipe import CottaSettings


class Restoration:
    """weight <- M * released weight + (1 - M) * weight, M a fresh Bernoulli mask over single weights.

    Masks as large as the network are drawn on its device, by a generator whose seed comes from the step's `StepRng`. So
    they repeat under the round's seed, continue after a restart, and are equal in all processes.
    """

    def __init__(self, student: SegmentationNetwork, released: SegmentationNetwork, probability: float) -> None:
        """Prepare it; `probability` is that of a weight at one step, 0 restores nothing."""
        self._probability = probability
        pairs = zip(student.parameters(), released.parameters(), strict=True)
        self._pairs = [(mine, theirs) for mine, theirs in pairs if mine.requires_grad]

    @torch.no_grad()
    def restore(self, draws: StepRng) -> None:
        """Restore after one step."""
        if self._probability == 0.0:
            return
        seed = int(SEEDS * draws.shared(1).item())
        generator = torch.Generator(self._pairs[0][0].device).manual_seed(seed)
        for mine, theirs in self._pairs:
            mask = torch.empty_like(mine).bernoulli_(self._probability, generator=generator)
            mine.lerp_(theirs, mask)  # exact at 0 and at 1


class Cotta(Recipe[CottaSettings]):
    """Algorithm 1: pseudo-label (eq. 4), consistency loss (eq. 5), teacher (eq. 2), random restoration (eq. 8).

    Every weight is trained. The teacher follows with `ema_decay` from the first step on and, as in the other recipes,
    normalises with the statistics of the batch. The device decides for each crop whether it is averaged over
    augmentations: both answers are computed and one is selected, because asking the GPU would delay the step.
    `augment_below` 0 saves the passes. `kept_ratio` is the share of confident pixels of the pseudo-label; the student
    learns all of them.
    """

    def __init__(self, inputs: RecipeInputs[CottaSettings]) -> None:
        """Build it. Raises ValueError without a released version: its confidence and weights are needed."""
        super().__init__(inputs)
        if inputs.released is None:
            raise ValueError("cotta needs the released version")
        self._released = inputs.released
        self.teacher = Teacher(self.student, inputs.recipe.ema_decay)
        self._restoration = Restoration(self.student, inputs.released, inputs.recipe.restore_probability)

    def _prepare(self) -> None:
        self.student.train()

    def after_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Let the teacher follow, then restore some of the student's weights."""
        self.teacher.follow(self.student, self.teacher.decay)
        self._restoration.restore(self.inputs.draws)

    def finished(self) -> SegmentationNetwork:
        """Return the teacher; the caller must estimate its running statistics over the target."""
        return copy.deepcopy(self.teacher.network)

    def modules(self) -> dict[str, nn.Module]:
        """Return student and teacher."""
        return {**super().modules(), "teacher": self.teacher.network}

    def _backward(self, batch: StepBatch, share: float) -> StepLosses:
        inputs = self.inputs
        images = normalise_unit(inputs.images(batch.target.images))
        valid, counted = inputs.on_device(batch.target.valid), inputs.on_device(batch.target.trusted)

        def consistency(output: Output) -> Tensor:
            window = output.window
            return soft_cross_entropy(output.logits, part_of(window, pseudo), part_of(window, counted))

        with inputs.autocast():
            pseudo = self._pseudo_label(images, valid)
            encoded = encode(self.student, images, inputs.draws)
            outputs = self.student.outputs(encoded.features, encoded.views, encoded.size)
            loss = mean_over_outputs(outputs, consistency)
        inputs.accelerator.backward(share * loss)
        kept_ratio = confident_share(pseudo, counted, inputs.recipe.threshold)
        return StepLosses({"consistency": loss.detach()}, kept_ratio)

    @torch.no_grad()
    def _pseudo_label(self, images: Tensor, valid: Tensor) -> Tensor:
        """Return class probabilities [B, K, H, W] for normalised crops [B, 3, H, W] with `valid` pixels [B, H, W]."""
        recipe = self.inputs.recipe
        plain = self.teacher(images).float().softmax(dim=1)
        if recipe.advanced.augment_below == 0.0:
            return plain
        averaged = average_over(self.teacher, images, recipe.augment_scales, plain)
        unsure = mean_confidence(self._released(images), valid) < recipe.advanced.augment_below  # [B]
        return torch.where(unsure.view(-1, 1, 1, 1), averaged, plain)
