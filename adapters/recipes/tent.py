"""TENT: lower the entropy of the prediction on the target by scale and shift of the normalisation layers alone.

Wang et al., "Tent: Fully Test-Time Adaptation by Entropy Minimization" (ICLR 2021).
"""

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapters.augmentation.augment import normalise_unit
from adapters.errors import AdapterError
from adapters.networks.batch_norm import without_noise
from adapters.networks.network import Output
from adapters.networks.training_pass import encode, mean_over_outputs, part_of
from adapters.recipes.recipe import Recipe, RecipeInputs, StepBatch, StepLosses
from adapters.self_training.pseudo_labels import confident_share, entropy
from configs.recipe import TentSettings

NORMALISATION = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)
"""Layers whose scale and shift are trained. The paper has BatchNorm; in a transformer LayerNorm takes its place."""


class Tent(Recipe[TentSettings]):
    """Entropy of the student on the target batch (eq. 1), averaged over valid pixels outside the margins.

    BatchNorm normalises with the batch, dropout and drop path are off: training sharpens the prediction that would be
    served. `kept_ratio` is the share of its confident pixels; nothing depends on it.
    """

    def __init__(self, inputs: RecipeInputs[TentSettings]) -> None:
        """Freeze everything but scales and shifts. Raises AdapterError when the network has none."""
        super().__init__(inputs)
        trained = norm_parameters(self.student)
        self.student.requires_grad_(False)
        if not trained:
            raise AdapterError(
                "recipe.name tent: this network has no BatchNorm, LayerNorm or GroupNorm whose scale and shift train, "
                "so there is nothing to train; use cotta, which trains every weight"
            )
        for parameter in trained:
            parameter.requires_grad_(True)

    def _prepare(self) -> None:
        without_noise(self.student.train())

    def _backward(self, batch: StepBatch, share: float) -> StepLosses:
        inputs = self.inputs
        counted = inputs.on_device(batch.target.trusted)

        def uncertainty(output: Output) -> Tensor:
            return entropy(output.logits, part_of(output.window, counted))

        def kept(output: Output) -> Tensor:
            probabilities = output.logits.detach().float().softmax(dim=1)
            return confident_share(probabilities, part_of(output.window, counted), inputs.recipe.threshold)

        with inputs.autocast():
            encoded = encode(self.student, normalise_unit(inputs.images(batch.target.images)), inputs.draws)
            outputs = self.student.outputs(encoded.features, encoded.views, encoded.size)
            loss = mean_over_outputs(outputs, uncertainty)
        inputs.accelerator.backward(share * loss)
        return StepLosses({"entropy": loss.detach()}, mean_over_outputs(outputs, kept))


def norm_parameters(network: nn.Module) -> list[nn.Parameter]:
    """Return scales and shifts of the normalisation layers of `network`, [C] each, without those of a frozen base."""
    layers = [layer for layer in network.modules() if isinstance(layer, NORMALISATION)]
    own = [parameter for layer in layers for parameter in layer.parameters(recurse=False)]
    return [parameter for parameter in own if parameter.requires_grad]
