"""Masked Feature Modeling as one more loss of a host (papers.md 1.5)."""

from torch import Tensor

from adapters.augment import normalise_unit
from adapters.hosts.host import HostInputs
from adapters.hosts.self_training import StepImages, Term
from adapters.mfm import mfm_loss
from adapters.rebuilder import Rebuilder


class MfmTerm:
    """`mfm`: lambda times the loss of the rebuilt target."""

    def __init__(self, inputs: HostInputs, rebuilder: Rebuilder) -> None:
        self._inputs, self._rebuilder = inputs, rebuilder

    def __call__(self, images: StepImages) -> dict[str, Tensor]:
        """The loss of one batch."""
        inputs, pseudo = self._inputs, images.pseudo
        with inputs.autocast():
            loss = mfm_loss(
                inputs.student,
                self._rebuilder,
                normalise_unit(images.target),
                pseudo.labels,
                pseudo.weight,
                inputs.draws,
            )
        return {"mfm": inputs.mfm.weight * loss}


def with_mfm(inputs: HostInputs, terms: list[Term]) -> list[Term]:
    """The host's `terms`, and MFM after them when there is a Rebuilder."""
    return terms if inputs.rebuilder is None else [*terms, MfmTerm(inputs, inputs.rebuilder)]
