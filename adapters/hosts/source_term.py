"""The supervised loss: cross-entropy on source crops against their labels."""

from torch import Tensor

from adapters.augment import color_jitter, normalise_unit
from adapters.hosts.host import HostInputs
from adapters.hosts.self_training import StepImages
from adapters.training_pass import encode, prediction_loss


class SourceTerm:
    """`source`: plain cross-entropy, weight 1 (papers.md 5); nothing when source-free."""

    def __init__(self, inputs: HostInputs) -> None:
        self._inputs = inputs

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """The loss of one batch."""
        if images.source is None or images.source_labels is None:
            return {}
        inputs, source = self._inputs, images.source
        if inputs.host.source_jitter > 0.0:
            source = color_jitter(source, inputs.host.source_jitter, inputs.draws)
        with inputs.autocast():
            encoded = encode(inputs.student, normalise_unit(source), inputs.draws)
            weight = inputs.label_weight(images.source_labels)
            return {"source": prediction_loss(inputs.student, encoded, images.source_labels, weight)}
