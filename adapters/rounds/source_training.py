"""Source training: from labelled images to the first version (`mfmd pretrain`)."""

import math
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from adapters.augmentation.augment import normalise_unit, photometric, to_unit
from adapters.checkpoints.bases import save_split
from adapters.checkpoints.checkpoint import make_manifest
from adapters.errors import TrainingFailed
from adapters.inference.palette import class_map
from adapters.inference.proof import prove
from adapters.inference.segment import choose_device, logits_of
from adapters.networks.build import build_checked
from adapters.networks.frozen import base_names
from adapters.networks.network import SegmentationNetwork, normalise
from adapters.networks.step_rng import StepRng
from adapters.networks.training_pass import encode, prediction_loss
from adapters.rounds.optim import build_optimizer, learning_rate_factor, set_learning_rates
from adapters.sampling.crops import SourceCrops, crop_within
from adapters.sampling.rare_class import balanced_weights
from adapters.sampling.streams import SourceBatch
from adapters.scoring.candidate import labelled_image
from adapters.scoring.scores.counts import count_images
from adapters.scoring.scores.iou import class_iou, mean_iou
from configs.settings import Settings
from storage.layout import StateLayout
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.source.labelled import LabelledSet
from storage.source.labelled_import import import_labelled

REPORT_SECONDS = 0.5
"""Time between two reports of one phase (seconds)."""


Phase = Literal["importing", "training", "validating", "done"]


@dataclass(frozen=True, slots=True)
class PretrainProgress:
    """Progress of source training."""

    phase: Phase
    step: int
    """Images read, or optimizer steps done."""
    steps: int
    """Total of `step`."""
    loss: float | None
    """Mean cross-entropy since the last report; None before the first step."""
    seconds: float
    """Time since the start (seconds)."""


Report = Callable[[PretrainProgress], None]


def pretrain(settings: Settings, on_progress: Report | None = None) -> Manifest:
    """Import the source set if needed, train `settings.network` on it, validate, add the version; does not promote it.

    `on_progress` is called about twice a second. The manifest's `scores` hold `source_miou` and `source_iou_<class>`
    over the validation images (0-1). Raises StorageError (no source, bad labels), AdapterError, TrainingFailed when the
    loss is not finite, ModelFails when the result does not run as it would serve.
    """
    return _SourceTraining(settings, on_progress or (lambda progress: None)).run()


class _SourceTraining:
    def __init__(self, settings: Settings, callback: Report) -> None:
        self._settings, self._pretrain, self._callback = settings, settings.pretrain, callback
        self._started = self._reported = time.monotonic()
        self._loss: float | None = None
        self._draws = StepRng(settings.pretrain.advanced.seed)

    def run(self) -> Manifest:
        layout = StateLayout(self._settings.state)
        layout.create()
        source = import_labelled(self._settings, layout, self._report_import)
        if self._settings.round.advanced.threads:
            torch.set_num_threads(self._settings.round.advanced.threads)
        torch.manual_seed(self._pretrain.advanced.seed)
        device, steps = choose_device(self._settings.round.device), self._pretrain.steps
        network = build_checked(self._settings.network.architecture(), len(self._settings.classes)).to(device)
        base = base_names(network)
        self._train(network, source, device)
        self._report("validating", steps, steps)
        scores = source_scores(network.eval(), source, [entry.name for entry in self._settings.classes])
        seed, code = self._pretrain.advanced.seed, network.source_digest
        manifest = make_manifest(self._settings, origin="pretrain", seed=seed, scores=scores, network_code=code)
        with tempfile.TemporaryDirectory() as folder:
            saved = save_split(network, base, Path(folder))
            prove(network.cpu(), self._settings, "the trained network")
            reason = f"{steps} steps on {len(source.train)} source images"
            registry = CheckpointRegistry(layout.checkpoints)
            manifest = registry.add(saved.weights, manifest, by="pretrain", reason=reason, base=saved.base)
        self._report("done", steps, steps)
        return manifest

    def _train(self, network: SegmentationNetwork, source: LabelledSet, device: torch.device) -> None:
        settings, losses = self._pretrain, list[Tensor]()
        stream = self._crops(source, pin=device.type == "cuda")
        pixels = source.class_pixels[list(source.train)]
        self._class_weights = balanced_weights(pixels, settings.advanced.class_balance).to(device)
        optimizer = build_optimizer(network.train(), settings.optim)
        self._report("training", 0, settings.steps)
        for step in range(settings.steps):
            set_learning_rates(optimizer, learning_rate_factor(step, settings.steps, settings.optim))
            losses.append(self._step(network, optimizer, next(stream), device))
            if self._due or step == settings.steps - 1:
                self._loss = _mean(losses, step + 1)
                losses.clear()
                self._report("training", step + 1, settings.steps)

    def _crops(self, source: LabelledSet, pin: bool) -> SourceCrops:
        settings = self._pretrain
        return SourceCrops(
            source,
            source.train,
            crop=crop_within((settings.crop_height, settings.crop_width), (source.height, source.width)),
            batch_size=settings.batch_size,
            seed=(settings.advanced.seed,),
            scale=(settings.advanced.min_scale, settings.advanced.max_scale),
            pin=pin,
        )

    def _step(
        self, network: SegmentationNetwork, optimizer: torch.optim.Optimizer, batch: SourceBatch, device: torch.device
    ) -> Tensor:
        """Run one optimizer step; return the loss, a scalar that stays on the device."""
        settings = self._pretrain
        images = photometric(to_unit(batch.images.to(device, non_blocking=True)), settings, self._draws)
        labels = batch.labels.to(device, non_blocking=True)
        weight = self._class_weights[labels.long()] if settings.advanced.class_balance > 0.0 else None
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.advanced.mixed_precision == "bf16"):
            encoded = encode(network, normalise_unit(images), self._draws)
            loss = prediction_loss(network, encoded, labels, weight)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        if settings.optim.advanced.clip_norm > 0.0:
            torch.nn.utils.clip_grad_norm_(network.parameters(), settings.optim.advanced.clip_norm)
        optimizer.step()
        return loss.detach()

    @property
    def _due(self) -> bool:
        return time.monotonic() - self._reported >= REPORT_SECONDS

    def _report_import(self, done: int, total: int) -> None:
        if self._due or done in (1, total):
            self._report("importing", done, total)

    def _report(self, phase: Phase, step: int, steps: int) -> None:
        self._reported = time.monotonic()
        self._callback(PretrainProgress(phase, step, steps, self._loss, self._reported - self._started))


@torch.inference_mode()
def source_scores(network: SegmentationNetwork, source: LabelledSet, class_names: list[str]) -> dict[str, float]:
    """Return `source_miou` and `source_iou_<class>` (0-1) on the validation images; empty without any.

    Whole images at frame size, valid region only. Classes that are neither labelled nor predicted are omitted.
    """
    device = next(network.parameters()).device
    images = (labelled_image(source, index, device) for index in source.validation)
    pairs = ((class_map(logits_of(network, normalise(pixels[None]))[0]), label) for pixels, label in images)
    counts = count_images(pairs, network.num_classes, source.ignore_index)
    if not counts.tp:
        return {}
    tp, fp, fn = counts.sums()
    by_class = zip(class_names, class_iou(tp, fp, fn).tolist(), strict=True)
    scores = {"source_miou": float(mean_iou(tp, fp, fn)), **{f"source_iou_{name}": iou for name, iou in by_class}}
    return {name: score for name, score in scores.items() if not math.isnan(score)}


def _mean(losses: list[Tensor], step: int) -> float:
    mean = float(torch.stack(losses).mean())
    if not math.isfinite(mean):
        raise TrainingFailed(
            f"the loss was not finite within the {len(losses)} steps up to {step}; lower pretrain.optim.learning_rate"
        )
    return mean
