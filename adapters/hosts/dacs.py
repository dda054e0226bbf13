"""DACS: self-training on images mixed across domains, with or without MFM on top.

Tranheden et al., "DACS: Domain Adaptation via Cross-domain Mixed Sampling" (2021); order and constants of a step as in
the DAFormer code base (papers.md 5), the MFM branch as in papers.md 1.5.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from accelerate.accelerator import Accelerator
from torch import Tensor

from adapters.augment import color_jitter, normalise_unit, strong_augment, to_unit
from adapters.classmix import class_mask, paste
from adapters.data import SourceBatch, TargetBatch
from adapters.losses import weighted_cross_entropy
from adapters.mfm import mfm_loss
from adapters.network import SegmentationNetwork
from adapters.pseudo_labels import PseudoLabel, pseudo_label
from adapters.rebuilder import Rebuilder
from adapters.teacher import Teacher
from configs.settings import HostSettings, MfmSettings


class StepBatch(NamedTuple):
    """What one step trains on."""

    target: TargetBatch
    """Unlabelled crops."""
    source: SourceBatch | None = None
    """As many labelled crops of the same size; none when source-free."""


@dataclass(frozen=True, slots=True)
class StepLosses:
    """What one step reports; everything stays on the device, so that nobody waits for it inside the step."""

    losses: dict[str, Tensor]
    """Detached scalars by name: `source` (not when source-free), `mix`, `mfm` (when enabled, times lambda)."""
    kept_ratio: Tensor
    """Share of pseudo-label pixels above the threshold, a scalar (0-1)."""


class Dacs:
    """One step: gradients of all losses, added up in the student (and the Rebuilder). The optimizer is the caller's.

    The order of a step: teacher update (not before the first), source cross-entropy, pseudo-labels on the clean target
    crops, ClassMix, jitter and blur, cross-entropy on the mix, MFM on the clean target crops. Each loss is
    back-propagated by itself, so that the activations of only one forward pass are held at a time.

    Source-free (a batch without source): there is nothing to paste, and the student learns the pseudo-labels on the
    jittered and blurred target crops themselves.
    """

    def __init__(
        self,
        student: SegmentationNetwork,
        teacher: Teacher,
        rebuilder: Rebuilder | None,
        host: HostSettings,
        mfm: MfmSettings,
        *,
        accelerator: Accelerator,
        generator: torch.Generator,
    ) -> None:
        """`rebuilder` none: no MFM. `generator` is a CPU generator: mixes and augmentations; dropout and masks of the
        Rebuilder come from torch's own."""
        self.student, self.teacher, self.rebuilder = student, teacher, rebuilder
        self._host, self._mfm = host, mfm
        self._accelerator, self._generator = accelerator, generator
        self._steps = 0

    def step(self, batch: StepBatch) -> StepLosses:
        """Add the gradients of one step to the parameters; advances the teacher."""
        self.teacher.update(self.student, self._steps)
        self._steps += 1
        losses: dict[str, Tensor] = {}
        if batch.source is not None:
            losses["source"] = self._backward(self._source_loss(batch.source))
        target = self._images(batch.target.images)
        pseudo = self._pseudo_label(target, batch.target.valid)
        losses["mix"] = self._backward(self._mix_loss(target, pseudo, batch.source))
        if self.rebuilder is not None:
            losses["mfm"] = self._backward(self._mfm.weight * self._mfm_loss(target, pseudo))
        return StepLosses(losses, pseudo.kept_ratio)

    def finished_teacher(self) -> SegmentationNetwork:
        """The teacher with the last step's student in it; its running statistics are still to be estimated."""
        self.teacher.update(self.student, self._steps)
        return self.teacher.network

    def _images(self, frames: Tensor) -> Tensor:
        """[B, H, W, 3] bytes -> [B, 3, H, W] in [0, 1] on the device."""
        return to_unit(self._on_device(frames))

    def _on_device(self, tensor: Tensor) -> Tensor:
        return tensor.to(self._accelerator.device, non_blocking=True)

    def _backward(self, loss: Tensor) -> Tensor:
        self._accelerator.backward(loss)
        return loss.detach()

    def _student_loss(self, images: Tensor, labels: Tensor, weight: Tensor | None = None) -> Tensor:
        """Cross-entropy of the student on `images` [B, 3, H, W] in [0, 1]."""
        with self._accelerator.autocast():
            logits = self.student(normalise_unit(images))
        return weighted_cross_entropy(logits, labels, weight)

    def _source_loss(self, source: SourceBatch) -> Tensor:
        images = self._images(source.images)
        if self._host.source_jitter > 0.0:
            images = color_jitter(images, self._host.source_jitter, self._generator)
        return self._student_loss(images, self._on_device(source.labels))

    def _pseudo_label(self, target: Tensor, valid: Tensor) -> PseudoLabel:
        with self._accelerator.autocast():
            logits = self.teacher(normalise_unit(target))
        return pseudo_label(logits, self._on_device(valid), self._host.threshold)

    def _mix_loss(self, target: Tensor, pseudo: PseudoLabel, source: SourceBatch | None) -> Tensor:
        images, labels, weight = target, pseudo.labels, pseudo.weight
        if source is not None and self._host.classmix:
            source_labels = self._on_device(source.labels).long()
            mask = class_mask(source_labels, self._generator)
            images = paste(mask, self._images(source.images), target)
            labels = paste(mask, source_labels, labels)
            weight = paste(mask, torch.ones_like(weight), weight)  # true labels count in full
        images = strong_augment(
            images,
            jitter=self._host.jitter,
            jitter_probability=self._host.jitter_probability,
            blur_probability=self._host.blur_probability,
            generator=self._generator,
        )
        return self._student_loss(images, labels, weight)

    def _mfm_loss(self, target: Tensor, pseudo: PseudoLabel) -> Tensor:
        assert self.rebuilder is not None
        with self._accelerator.autocast():
            return mfm_loss(self.student, self.rebuilder, normalise_unit(target), pseudo.labels, pseudo.weight)
