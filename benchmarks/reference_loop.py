"""A plain DACS step, with or without MFM, as a baseline of speed: what a first correct version looks like.

It follows the published code (docs/explanation/sources.md): float32; teacher update parameter by parameter; forward and
backward of each loss by itself; classes of the mix picked image by image; jitter and blur image by image on the CPU;
numbers read back to Python where that code reads them. Layers keep torch's default memory format, and the optimizer is
AdamW as torch builds it. Network, Rebuilder and crops are those of `adapters`, so only the loop differs;
`tests/benchmarks/test_reference_loop.py` holds it to the losses of our step.
"""

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from kornia.augmentation import ColorJitter
from kornia.filters import gaussian_blur2d
from torch import Tensor, nn

from adapters.augmentation.augment import BLUR_SIGMA, odd_kernel
from adapters.mfm.rebuilder import Rebuilder
from adapters.networks.batch_norm import without_noise
from adapters.networks.decoders.layers import DepthwiseConv
from adapters.networks.network import IMAGENET_MEAN, IMAGENET_STD, SegmentationNetwork
from adapters.networks.training_pass import IGNORE_INDEX
from adapters.recipes.recipe import StepBatch
from adapters.rounds.optim import build_optimizer
from configs.settings import Settings


class ReferenceLoop:
    """Student, teacher, optimizer and one step."""

    def __init__(self, student: SegmentationNetwork, rebuilder: Rebuilder | None, settings: Settings) -> None:
        """`student` and `rebuilder` are changed in place: default memory format, plain convolutions."""
        self.recipe, self.mfm = settings.recipe, settings.mfm
        self.student = with_plain_layers(student).train()
        self.rebuilder = rebuilder
        if rebuilder is not None:
            rebuilder.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        self.teacher = copy.deepcopy(self.student).requires_grad_(False)
        without_noise(self.teacher)
        self.device = next(student.parameters()).device
        groups = build_optimizer(
            student, settings.round.optim, rebuilder=rebuilder, rebuilder_lr=self.mfm.learning_rate
        ).param_groups
        self.optimizer = torch.optim.AdamW(
            [{name: group[name] for name in ("params", "lr", "weight_decay")} for group in groups]
        )
        self.steps = 0

    def step(self, batch: StepBatch) -> dict[str, float]:
        """One optimizer step on a batch with source; the losses, read back one by one."""
        assert batch.source is not None
        self._update_teacher()
        self.steps += 1
        self.optimizer.zero_grad()
        source, target = self._network_input(batch.source.images), self._network_input(batch.target.images)
        source_labels = batch.source.labels.to(self.device).long()
        losses = {"source": self._learn(self.student(source), source_labels, None)}
        labels, weight = self._pseudo_label(target, batch)
        mixed, mixed_labels, mixed_weight = source, source_labels, torch.ones_like(weight)
        if self.recipe.advanced.classmix:
            mixed, mixed_labels, mixed_weight = self._mix(source, source_labels, target, labels, weight)
        else:
            mixed, mixed_labels, mixed_weight = target, labels, weight
        losses["mix"] = self._learn(self.student(self._augment(mixed)), mixed_labels, mixed_weight)
        if self.rebuilder is not None:
            logits = self._rebuilt_logits(self.rebuilder, target)
            losses["mfm"] = self._learn(logits, labels, weight, self.mfm.weight)
        self.optimizer.step()
        return losses

    def _update_teacher(self) -> None:
        if self.steps == 0:
            return
        alpha = min(1.0 - 1.0 / (self.steps + 1), self.recipe.ema_decay)
        for theirs, mine in zip(self.teacher.parameters(), self.student.parameters(), strict=True):
            theirs.data.copy_(alpha * theirs.data + (1.0 - alpha) * mine.data)

    def _network_input(self, frames: Tensor) -> Tensor:
        """[B, H, W, 3] bytes -> [B, 3, H, W] normalised, planes in memory."""
        images = frames.to(self.device).permute(0, 3, 1, 2).contiguous().float() / 255.0
        return (images - self._statistic(IMAGENET_MEAN)) / self._statistic(IMAGENET_STD)

    def _statistic(self, values: Sequence[float], device: torch.device | None = None) -> Tensor:
        return torch.tensor(values, device=device or self.device).view(1, 3, 1, 1)

    def _learn(self, logits: Tensor, labels: Tensor, weight: Tensor | None, factor: float = 1.0) -> float:
        per_pixel = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="none")
        loss = factor * (per_pixel if weight is None else weight * per_pixel).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.item())

    @torch.no_grad()
    def _pseudo_label(self, target: Tensor, batch: StepBatch) -> tuple[Tensor, Tensor]:
        """Labels and weights [B, H, W]."""
        confidence, labels = torch.max(torch.softmax(self.teacher(target), dim=1), dim=1)
        valid = batch.target.valid.to(self.device)
        share = ((confidence >= self.recipe.threshold) & valid).sum().item() / max(valid.sum().item(), 1)
        labels[~valid] = IGNORE_INDEX
        weight = share * torch.ones(labels.shape, device=self.device)
        weight[~(valid & batch.target.trusted.to(self.device))] = 0.0
        return labels, weight

    def _mix(
        self, source: Tensor, source_labels: Tensor, target: Tensor, labels: Tensor, weight: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels, weights of the mix, image by image."""
        classes = torch.unique(source_labels)
        parts = []
        for index in range(source.shape[0]):
            chosen = classes[torch.randperm(len(classes))[: (len(classes) + 1) // 2].to(self.device)]
            mask = (source_labels[index][None] == chosen[:, None, None]).sum(dim=0).float()  # [H, W], 1: source
            image = mask * source[index] + (1.0 - mask) * target[index]
            label = mask * source_labels[index] + (1.0 - mask) * labels[index]
            parts.append((image, label.long(), mask + (1.0 - mask) * weight[index]))
        images, mixed_labels, weights = zip(*parts, strict=True)
        return torch.stack(images), torch.stack(mixed_labels), torch.stack(weights)

    def _augment(self, images: Tensor) -> Tensor:
        """Jitter and blur of normalised images, image by image on the CPU; whether, is drawn once for the batch."""
        jitter, blur = torch.rand(2).tolist()
        jitter, blur = jitter < self.recipe.advanced.jitter_probability, blur < self.recipe.advanced.blur_probability
        if not (jitter or blur):
            return images
        cpu = torch.device("cpu")
        mean, deviation = self._statistic(IMAGENET_MEAN, cpu), self._statistic(IMAGENET_STD, cpu)
        changed = []
        for image in images:
            one = (image[None].cpu() * deviation + mean).clamp(0.0, 1.0)
            if jitter:
                one = ColorJitter(*(4 * [self.recipe.jitter]), p=1.0)(one)
            if blur:
                low, high = BLUR_SIGMA
                sigma = low + (high - low) * torch.rand(()).item()
                one = gaussian_blur2d(one, (odd_kernel(one.shape[-2]), odd_kernel(one.shape[-1])), (sigma, sigma))
            changed.append((one - mean) / deviation)
        return torch.cat(changed).to(self.device)

    def _rebuilt_logits(self, rebuilder: Rebuilder, target: Tensor) -> Tensor:
        features = self.student.encode(target)
        rows, columns = (min(self.mfm.ablation.grid, side) for side in features[-1].shape[-2:])
        keep = torch.rand(target.shape[0], 1, rows, columns, device=self.device) >= self.mfm.mask_ratio
        return self.student.decode(rebuilder(features, keep), (target.shape[-2], target.shape[-1]))


def with_plain_layers(network: SegmentationNetwork) -> SegmentationNetwork:
    """`network` in default memory format, its convolutions torch's own; same weights."""
    for module in list(network.modules()):
        for name, layer in module.named_children():
            if isinstance(layer, DepthwiseConv):
                setattr(module, name, _plain(layer))
    return network.to(memory_format=torch.contiguous_format)


def _plain(layer: DepthwiseConv) -> nn.Conv2d:
    plain = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        3,
        padding=layer.padding,
        dilation=layer.dilation,
        groups=layer.groups,
        bias=False,
    )
    plain.weight = nn.Parameter(layer.weight.detach().clone(memory_format=torch.contiguous_format))
    return plain
