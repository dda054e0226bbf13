"""Masked Feature Modeling: the loss of the training-only branch (Zhou et al., arXiv 2509.13801; papers.md 1.2, 1.5)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapters.draws import Draws
from adapters.network import SegmentationNetwork
from adapters.rebuilder import Rebuilder
from adapters.training_pass import encode, prediction_loss


def mfm_loss(
    student: SegmentationNetwork,
    rebuilder: Rebuilder,
    images: Tensor,
    labels: Tensor,
    weight: Tensor,
    draws: Draws,
    keep: Sequence[Tensor] | None = None,
) -> Tensor:
    """Cross-entropy of the student's answer from rebuilt features against the teacher's pseudo-label, a scalar.

    The student encodes the plain target images `[B, 3, H, W]` (normalised, unmasked); the Rebuilder masks and rebuilds
    the features; the student's ordinary decoder reads them. The loss counts all pixels, masked and visible alike,
    times `weight` `[B, H, W]`, the host's confidence weight; `labels` are `[B, H, W]`. Not yet multiplied by
    lambda (`settings.mfm.weight`). Trains encoder, decoder and Rebuilder. `keep` replaces the random masks, one a view
    (tests).

    BatchNorm (the papers leave it open): the encoder sees a real target image and updates its running statistics as
    ever. The decoder sees rebuilt features, which never occur when serving: there it normalises with the batch's own
    statistics, like any training pass, but its running statistics stay untouched.
    """
    encoded = encode(student, images, draws)
    masks = [rebuilder.draw_mask(maps, draws) for maps in encoded.features] if keep is None else keep
    rebuilt = [rebuilder(maps, mask) for maps, mask in zip(encoded.features, masks, strict=True)]
    with untouched_running_statistics(student.decoder):
        return prediction_loss(student, encoded, labels, weight, rebuilt)


@contextmanager
def untouched_running_statistics(module: nn.Module) -> Iterator[None]:
    """Inside, BatchNorm layers of `module` in train mode use batch statistics without recording them.

    `track_running_stats=False` does that in train mode and nothing in eval mode, also for SyncBatchNorm.
    """
    tracking = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
