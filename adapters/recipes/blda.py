"""BLDA: class-balanced learning by the distributions of the logits.

Li et al., "Balanced Learning for Domain Adaptive Semantic Segmentation" (ICML 2025, arXiv 2512.06886), constants of the
paper and of its published code. A class that the network predicts too often has higher logits than others at the same
quantile. The losses of source and mix see logits without a part of that difference, so the network learns to make it
up. A second head learns the quantile of each pixel, which does not depend on the domain; ours reads the encoder's maps.
"""

from dataclasses import replace
from typing import Any

from torch import Tensor

from adapters.errors import AdapterError
from adapters.networks.training_pass import IGNORE_INDEX, outputs_loss, part_of
from adapters.recipes.levels_head import LevelsHead
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, Supervised, TermModule, plain_loss
from adapters.self_training.logit_alignment import Tables, looked_up, stacked, tables_of
from adapters.self_training.logit_distributions import Following, LogitDistributions
from configs.recipe import SelfTrainingSettings


class Blda(TermModule):
    """Distributions of the logits on source and target, their anchors, and the quantile head."""

    name = "blda"
    has_losses = False

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings]) -> None:
        """Build it on the student's device. Raises AdapterError without source images."""
        super().__init__()
        if inputs.source_free:
            raise AdapterError(
                "recipe.advanced.blda: needs labelled source images, whose logits are the anchor; without them set "
                "enabled to false"
            )
        self._settings = settings = inputs.recipe.advanced.blda
        classes = inputs.student.num_classes
        self.source = LogitDistributions(classes, settings.components)
        self.target = LogitDistributions(classes, settings.components)
        self.anchors = LogitDistributions(classes, settings.components, tied=True)
        if settings.quantile_weight > 0.0:
            self.head = LevelsHead(inputs.student.feature_channels, 1)
        self._how = Following(settings.iterations, settings.momentum, settings.warmup, settings.class_share)
        self.to(inputs.accelerator.device)

    def prepare(self, inputs: RecipeInputs[Any], images: StepImages) -> StepImages:
        """Return the batch with the comparison of this term."""
        return replace(images, compare=self.compare)

    def compare(self, inputs: RecipeInputs[Any], seen: Supervised) -> dict[str, Tensor]:
        """Return the cross-entropy of the corrected logits under the pass's name, and `NAME_quantile`.

        With several predictions in a pass the first one, which covers everything, moves the distributions. Translated
        images are of neither domain: they have the plain loss.
        """
        if seen.name == "translated":
            return plain_loss(inputs, seen)
        outputs = inputs.student.outputs(seen.encoded.features, seen.encoded.views, seen.encoded.size)
        with inputs.full_precision():
            self._update(outputs[0].logits.detach().float(), seen)
            tables, rows = self._tables(seen), _rows(seen, inputs.student.num_classes)
            found = [
                looked_up(tables, output.logits.detach().float(), part_of(output.window, rows)) for output in outputs
            ]
            corrected = [
                output._replace(logits=output.logits.float() - self._settings.strength * shift)
                for output, (shift, _) in zip(outputs, found, strict=True)
            ]
            losses = {seen.name: outputs_loss(corrected, seen.labels, seen.weight, seen.loss)}
        if self._settings.quantile_weight > 0.0:
            loss = self._quantile_loss(found[0][1], tables.seen, rows, seen)
            losses[f"{seen.name}_quantile"] = self._settings.quantile_weight * loss
        return losses

    def _update(self, logits: Tensor, seen: Supervised) -> None:
        """Let the distributions of the pass's domain follow; pseudo-labels without weight are not seen."""
        labels = seen.labels
        if seen.true is not None:
            assert seen.weight is not None  # the mix has pseudo-labels
            labels = labels.masked_fill(seen.true | (seen.weight == 0), IGNORE_INDEX)
        stride = self._settings.stride
        first = (stride - 1) // 2
        some = logits[..., first::stride, first::stride].permute(0, 2, 3, 1).reshape(-1, logits.shape[1])
        theirs = labels[:, first::stride, first::stride].flatten()
        for distributions in (self.source, self.anchors) if seen.true is None else (self.target,):
            distributions.update(some, theirs, self._how)

    def _tables(self, seen: Supervised) -> Tables:
        """Return the rows of the source, then, if there are pseudo-labels, those of the target."""
        source = tables_of(self.source, self.anchors, self._settings.trim)
        if seen.true is None:
            return source
        return stacked(source, tables_of(self.target, self.anchors, self._settings.trim))

    def _quantile_loss(self, quantile: Tensor, fitted: Tensor, rows: Tensor, seen: Supervised) -> Tensor:
        """Return the mean distance of the head's answer from each pixel's quantile, over all pixels, a scalar.

        `quantile` [B, C, H, W]; `fitted` bool, a row for each of `rows` [B, H, W].
        """
        guess = self.head.resized(seen.encoded.features[0], seen.encoded.size).float().squeeze(1)
        known = seen.labels != IGNORE_INDEX
        own = seen.labels.masked_fill(~known, 0)
        wanted = quantile.gather(1, own.unsqueeze(1)).squeeze(1)
        counted = (known & fitted[rows, own]).float()
        weight = counted if seen.weight is None else counted * seen.weight
        mean: Tensor = (weight * (guess - wanted).abs()).mean()
        return mean


def _rows(seen: Supervised, classes: int) -> Tensor:
    """Return each pixel's row in the tables [B, H, W]: its label, or `classes` more for a pseudo-label; ignored: 0."""
    rows = seen.labels.masked_fill(seen.labels == IGNORE_INDEX, 0)
    return rows if seen.true is None else rows + classes * ~seen.true
