"""Compute the loss of Masked Feature Modeling, the training-only branch (Zhou et al., arXiv 2509.13801)."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from adapters.errors import AdapterError
from adapters.mfm.feature_mask import draw_keep
from adapters.mfm.rebuilder import Rebuilder, switched_off
from adapters.mfm.targets import feature_distance, pixel_distance
from adapters.networks.batch_norm import batch_norm_layers
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import Encoded, encode, prediction_loss


def mfm_loss(
    student: SegmentationNetwork,
    rebuilder: Rebuilder,
    images: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    draws: StepRng,
    keep: Sequence[Tensor] | None = None,
    teacher: SegmentationNetwork | None = None,
) -> Tensor:
    """Return the branch's loss on a batch, a scalar, as `rebuilder.settings` say; it is not yet multiplied by lambda.

    The student encodes plain images `[B, 3, H, W]` (normalised, unmasked). The Rebuilder masks and rebuilds the
    features. By default (`classify`) the student's ordinary decoder reads them. The loss is then the cross-entropy
    against `labels` `[B, H, W]` (pseudo-labels of the teacher, or true labels) over all pixels, masked and visible
    alike, times `weight` `[B, H, W]` (the recipe's confidence; None means 1). Other targets compare the rebuilt cells
    themselves (`adapters.mfm.targets`). `teacher` gives the features for `teacher_feature`. `keep` replaces the random
    masks, one per view (for tests).

    BatchNorm (the papers leave it open): the encoder sees real images and updates its running statistics as usual, also
    when it is detached. The decoder sees rebuilt features, which never occur in serving. So it normalises with the
    batch's own statistics, like any training pass, but its running statistics do not change.
    """
    settings = rebuilder.settings
    with torch.no_grad() if settings.ablation.detach_encoder else nullcontext():
        encoded = encode(student, images, draws)
    grid, ratio = settings.ablation.grid, settings.mask_ratio
    masks = keep or [draw_keep(maps[-1], grid, ratio, draws) for maps in encoded.features]
    if settings.ablation.reconstruction == "pixels":
        return _pixel_loss(rebuilder, encoded, masks)
    rebuilt = [rebuilder(maps, mask) for maps, mask in zip(encoded.features, masks, strict=True)]
    if settings.ablation.classifies:
        # a pass recorded without gradients of the decoder's parameters has no edges to them; other passes keep theirs
        frozen = student.decoder.parameters() if settings.ablation.freeze_decoder else ()
        with untouched_running_statistics(student.decoder), switched_off(frozen, "requires_grad"):
            return prediction_loss(student, encoded, labels, weight, rebuilt)
    targets = _target_features(settings.ablation.reconstruction, encoded, teacher)
    return torch.stack([feature_distance(*levels) for levels in zip(rebuilt, targets, masks, strict=True)]).mean()


def _pixel_loss(rebuilder: Rebuilder, encoded: Encoded, masks: Sequence[Tensor]) -> Tensor:
    distances = [
        pixel_distance(rebuilder.pixels(maps[-1], mask), view.images, mask)
        for maps, view, mask in zip(encoded.features, encoded.views, masks, strict=True)
    ]
    return torch.stack(distances).mean()


@torch.no_grad()
def _target_features(
    reconstruction: str, encoded: Encoded, teacher: SegmentationNetwork | None
) -> list[tuple[Tensor, ...]]:
    """Return what rebuilt maps must match in each view: the teacher's maps of the same images, or the student's own."""
    if reconstruction == "student_feature":
        return [tuple(level.detach() for level in maps) for maps in encoded.features]
    if teacher is None:
        raise AdapterError(
            "mfm.ablation.reconstruction: teacher_feature needs a recipe with a teacher; choose another target"
        )
    return [teacher.encode(view.images) for view in encoded.views]


def untouched_running_statistics(module: nn.Module) -> AbstractContextManager[None]:
    """Let BatchNorm layers of `module` in train mode use batch statistics without recording them.

    `track_running_stats=False` has this effect in train mode and none in eval mode, also for SyncBatchNorm.
    """
    return switched_off(batch_norm_layers(module), "track_running_stats")
