"""DiDA: images with more or less noise are domains between source and target, and a second encoder makes up for it.

Li et al., "Towards Unsupervised Domain Bridging via Image Degradation in Semantic Segmentation" (NeurIPS 2025, arXiv
2412.10339), from its abstract and a note on the paper; its code was not available. Noise removes what differs between
domains (texture) before what they share (shape). So classes must also be read from noisy images. A second encoder,
which knows how much noise there is, adds to the maps what the noise took away, and with a head it must find the noise.
"""

import copy
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from adapters.augmentation.augment import normalise_unit
from adapters.mfm.rebuilder import feature_sizes
from adapters.networks.network import View
from adapters.networks.training_pass import Encoded, Maps, prediction_loss
from adapters.recipes.levels_head import LevelsHead
from adapters.recipes.recipe import RecipeInputs
from adapters.recipes.self_training import StepImages, TermModule
from adapters.self_training.teacher import shared_parameters
from configs.recipe import SelfTrainingSettings

START, END = -3.0, 3.0
"""Ends of the sigmoid schedule: usual ones of Jabri et al. (arXiv 2212.11972); those of DiDA are not known."""
EMBEDDING = 128
"""Width of the embedding of the noise level; ours."""
PROBE = 128
"""Side of the images with which the stride of the finest map is found (pixels)."""
LONGEST_PERIOD = 10000.0
"""Of the embedding's sines, as in Vaswani et al. 2017."""


def kept_signal(times: Tensor, steps: int) -> Tensor:
    """Return alpha-bar of integer `times` (0 to `steps`), of the same shape, 1 to 0: the sigmoid schedule."""
    first, last = 1.0 / (1.0 + math.exp(-START)), 1.0 / (1.0 + math.exp(-END))
    kept: Tensor = (last - torch.sigmoid(times / steps * (END - START) + START)) / (last - first)
    return kept


def degraded(images: Tensor, noise: Tensor, kept: Tensor) -> Tensor:
    """Return sqrt(kept) * `images` + sqrt(1 - kept) * `noise`, both [B, 3, H, W]; `kept` [B] (0-1)."""
    share = kept.clamp(0.0, 1.0).view(-1, 1, 1, 1)
    return share.sqrt() * images + (1.0 - share).sqrt() * noise


def time_embedding(times: Tensor) -> Tensor:
    """Return sines and cosines of `times` [B], [B, EMBEDDING]."""
    half = EMBEDDING // 2
    rates = torch.exp(torch.arange(half, device=times.device) * (-math.log(LONGEST_PERIOD) / half))
    angles = times.float().unsqueeze(1) * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)


class Modulation(nn.Module):
    """Scale and shift of a level's channels by the noise level.

    The scale begins at 0, so that a round begins with the maps of the student alone; ours.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(EMBEDDING, EMBEDDING), nn.SiLU(), nn.Linear(EMBEDDING, 2 * channels))
        last = self.layers[-1]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        with torch.no_grad():
            last.bias.copy_(torch.cat([-torch.ones(channels), torch.zeros(channels)]))

    def forward(self, level: Tensor, embedded: Tensor) -> Tensor:
        """Return (scale + 1) * `level` + shift, [B, C, h, w], for `embedded` [B, EMBEDDING]."""
        scale, shift = self.layers(embedded).unsqueeze(-1).unsqueeze(-1).chunk(2, dim=1)
        modulated: Tensor = (scale + 1.0) * level + shift
        return modulated


class Dida(TermModule):
    """The second encoder, which begins as a copy of the student's, its modulations, and the head that finds the noise.

    What is frozen in a version with a base, both encoders share, and no training state holds it.
    As a term it has the losses of the target; `source` is the term of the source.
    """

    name = "dida"

    def __init__(self, inputs: RecipeInputs[SelfTrainingSettings]) -> None:
        """Build it on the student's device."""
        super().__init__()
        self._settings = inputs.recipe.advanced.dida
        student = inputs.student
        self.encoder = copy.deepcopy(student.encoder, shared_parameters(student)).train()  # it comes in eval mode
        self.base = student.base.below("encoder.") if student.base is not None else None
        channels = student.feature_channels
        self.modulations = nn.ModuleList(Modulation(width) for width in channels)
        finest = max(height for height, _ in feature_sizes(student, (PROBE, PROBE)))
        self.patch = max(1, round(PROBE / finest))
        self.head = LevelsHead(channels, 3 * self.patch**2)
        self.to(inputs.accelerator.device)

    def forward(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `dida`, cross-entropy on the noisy target against the pseudo-label, and `dida_noise`."""
        return self._losses(inputs, "dida", images.target, images.pseudo.labels, images.pseudo.weight)

    def source(self, inputs: RecipeInputs[Any], images: StepImages) -> dict[str, Tensor]:
        """Return `dida_source` and `dida_source_noise` of the noisy source with true labels; none when source-free."""
        if images.source is None or images.source_labels is None:
            return {}
        weight = inputs.label_weight(images.source_labels)
        return self._losses(inputs, "dida_source", images.source, images.source_labels, weight)

    def _losses(
        self, inputs: RecipeInputs[Any], name: str, images: Tensor, labels: Tensor, weight: Tensor | None
    ) -> dict[str, Tensor]:
        """Return the losses of one domain; each view of a multi-resolution network has noise of its own."""
        settings, draws = self._settings, inputs.draws
        drawn = (settings.steps * draws.per_image(len(images))).floor() + 1.0  # [B], 1 to `steps`
        times = drawn.to(images.device, non_blocking=True)
        clean = inputs.student.views(normalise_unit(images), draws)
        noises = [draws.normal(view.images) for view in clean]
        kept = kept_signal(times, settings.steps)
        views = tuple(
            View(degraded(view.images, noise, kept), view.window) for view, noise in zip(clean, noises, strict=True)
        )
        with inputs.autocast():
            maps = [self.compensated(inputs.student.encode(view.images), view.images, times) for view in views]
            encoded = Encoded(tuple(maps), views, (images.shape[-2], images.shape[-1]))
            loss = prediction_loss(inputs.student, encoded, labels, weight)
            distances = [self.noise_distance(found, noise) for found, noise in zip(maps, noises, strict=True)]
        return {
            name: settings.weight * loss,
            f"{name}_noise": settings.noise_weight * torch.stack(distances).mean(),
        }

    def compensated(self, maps: Sequence[Tensor], images: Tensor, times: Tensor) -> Maps:
        """Return the student's `maps` of noisy `images` [B, 3, h, w] plus the second encoder's at `times` [B]."""
        embedded = time_embedding(times)
        return tuple(
            level + modulation(other, embedded)
            for level, other, modulation in zip(maps, self.encoder(images), self.modulations, strict=True)
        )

    def noise_distance(self, maps: Sequence[Tensor], noise: Tensor) -> Tensor:
        """Return the mean squared difference of the head's answer and `noise` [B, 3, h, w], a scalar.

        Each position of the finest map answers for the pixels of a patch, as many as its stride; ours.
        """
        found = F.pixel_shuffle(self.head(maps), self.patch).float()
        return F.mse_loss(F.interpolate(found, noise.shape[-2:], mode="bilinear", align_corners=False), noise)
