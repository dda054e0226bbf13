"""Class confidence: the weight of a pseudo-label comes from the confidences of its own class.

A reading of OMUDA's class level (Ou et al., arXiv 2512.12303), of which only the abstract is public: "class-decoupling
masking models class-wise uncertainty to reduce pseudo-label noise". The rule is ours. DACS weighs all pixels of a batch
by one number, the share of confident pixels. So a good class suffers from a bad one that fills the image, and a bad
class profits from a good one. Here each class has a number of its own, from the confidences of many batches.
"""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from adapters.networks.parallel import sum_over_processes
from adapters.networks.training_pass import IGNORE_INDEX
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import Answer, StepImages, TermModule
from adapters.self_training.pseudo_labels import PseudoLabel
from configs.recipe import SelfTrainingSettings

BINS = 1000
"""Equal parts of the confidences from 0 to 1."""


class ClassConfidence(TermModule):
    """Running histograms of the teacher's confidence by class, and the weights of pseudo-labels that follow from them.

    It has no loss: every term of the step sees its weights.
    """

    name = "class_confidence"
    has_losses = False
    histogram: Tensor

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings]) -> None:
        """Build it on the student's device."""
        super().__init__()
        self._settings, self._threshold = inputs.recipe.advanced.class_confidence, inputs.recipe.threshold
        classes = inputs.student.num_classes
        self.register_buffer("histogram", torch.zeros(classes, BINS + 1))  # pixels; the last bin holds 1
        self.to(inputs.accelerator.device)

    def prepare(self, inputs: RecipeInputs[Any], images: StepImages) -> StepImages:
        """Return the batch with the weights of this term; the answer is counted when a term first reads it."""
        return replace(images, answer=Answer(lambda: self._weighed(images.pseudo)))

    def _weighed(self, pseudo: PseudoLabel) -> PseudoLabel:
        self._count(pseudo)
        weight = self.class_weights()[pseudo.labels.masked_fill(pseudo.labels == IGNORE_INDEX, 0)] * pseudo.trusted
        return replace(pseudo, weight=weight)

    @torch.no_grad()
    def _count(self, pseudo: PseudoLabel) -> None:
        """Let the histograms follow with the pixels of all processes that hold image."""
        known = pseudo.labels != IGNORE_INDEX
        bins = (pseudo.confidence * BINS).long().clamp(0, BINS)
        places = pseudo.labels.masked_fill(~known, 0) * (BINS + 1) + bins
        counts = torch.zeros(self.histogram.numel(), dtype=torch.int64, device=bins.device)
        counts.scatter_add_(0, places.flatten(), known.flatten().long())  # whole numbers: in any order the same
        self.histogram.mul_(self._settings.momentum).add_(sum_over_processes(counts).view_as(self.histogram))

    @torch.no_grad()
    def class_weights(self) -> Tensor:
        """Return the weight of each class, [K] (0-1): the share of its pixels that count as confident.

        They count from `recipe.threshold` on, or from the class's own quantile if that is lower. A class without pixels
        has weight 0.
        """
        total = self.histogram.sum(dim=1)
        above = self.histogram.flip(1).cumsum(1).flip(1)  # [K, BINS + 1], pixels in a bin and in those above it
        share = above / total.clamp(min=1e-6).unsqueeze(1)
        fixed = share[:, round(self._threshold * BINS)]
        own = share.masked_fill(share < 1.0 - self._settings.quantile, 1.0).amin(dim=1)
        return torch.maximum(fixed, own) * (total > 0)
