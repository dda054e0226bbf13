"""Compute the loss of Masked Feature Modeling, the training-only branch (Zhou et al., arXiv 2509.13801)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from adapters.errors import AdapterError
from adapters.mfm.feature_mask import draw_keep
from adapters.mfm.rebuilder import Rebuilder
from adapters.mfm.targets import feature_distance, pixel_distance
from adapters.networks.network import SegmentationNetwork
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import Encoded, encode, prediction_loss
from configs.mfm import MfmSettings


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
    masks = _masks(encoded, settings, draws) if keep is None else keep
    if settings.ablation.reconstruction == "pixels":
        return _pixel_loss(rebuilder, encoded, masks)
    rebuilt = [rebuilder(maps, mask) for maps, mask in zip(encoded.features, masks, strict=True)]
    if settings.ablation.classifies:
        with untouched_running_statistics(student.decoder), frozen(student.decoder, settings.ablation.freeze_decoder):
            return prediction_loss(student, encoded, labels, weight, rebuilt)
    targets = _target_features(settings.ablation.reconstruction, encoded, teacher)
    return torch.stack([feature_distance(*levels) for levels in zip(rebuilt, targets, masks, strict=True)]).mean()


def _masks(encoded: Encoded, settings: MfmSettings, draws: StepRng) -> list[Tensor]:
    """Return a keep mask for each view."""
    return [draw_keep(maps[-1], settings.ablation.grid, settings.mask_ratio, draws) for maps in encoded.features]


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


@contextmanager
def frozen(module: nn.Module, freeze: bool = True) -> Iterator[None]:
    """Let gradients flow through `module` but not into its parameters; `freeze` false changes nothing.

    A pass recorded inside the context has no edges to the parameters. Passes before and after keep theirs.
    """
    held = [parameter for parameter in module.parameters() if freeze and parameter.requires_grad]
    for parameter in held:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in held:
            parameter.requires_grad_(True)


@contextmanager
def untouched_running_statistics(module: nn.Module) -> Iterator[None]:
    """Let BatchNorm layers of `module` in train mode use batch statistics without recording them.

    `track_running_stats=False` has this effect in train mode and none in eval mode, also for SyncBatchNorm.
    """
    tracking = [layer for layer in module.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
