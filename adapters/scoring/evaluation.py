"""Score a version on labelled images, at the resolution of the labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from adapters.checkpoints.checkpoint import load_version
from adapters.errors import AdapterError
from adapters.inference.segment import choose_device, segment_fitted
from adapters.networks.network import SegmentationNetwork
from adapters.networks.training_pass import IGNORE_INDEX
from adapters.scoring.scores.counts import count_images
from adapters.scoring.scores.iou import class_iou, mean_iou
from configs.settings import Settings
from configs.watch import WatchSettings
from storage.errors import RefusedImage
from storage.layout import StateLayout
from storage.media.bounded import DecodeLimits
from storage.media.images import Fit, fit_frame
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.source.label_map import LabelMap
from storage.source.pairing import LabelledPair, pair_labels, read_pair


@dataclass(frozen=True, slots=True)
class Evaluation:
    """How good predictions are against labels."""

    miou: float
    """Mean IoU over the classes that are labelled or predicted (0-1)."""
    iou: dict[str, float | None]
    """IoU by class (0-1); None for a class that is neither labelled nor predicted."""
    images: int
    """Images scored."""
    pixel_accuracy: float
    """Share of labelled pixels that are predicted correctly (0-1)."""
    version: int | None = None
    """The version that predicted, if a version did."""


def evaluate_folder(settings: Settings, images: Path, labels: Path, version: int | None = None) -> Evaluation:
    """Score `version` (the serving one by default) on every image below `images` with its label below `labels`.

    Labels are found and read as those of source images. Predictions are scaled to the label's size. Raises
    SourceRefused (pairs), RefusedImage (a file), UnknownVersion, CorruptCheckpoint, AdapterError (nothing is labelled).
    """
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    number = registry.serving_version() if version is None else version
    pairs = pair_labels(images, labels, settings.source.label_suffix if settings.source else "")
    network, manifest = load_version(registry, number, choose_device(settings.serving.device))
    label_map = LabelMap.of(settings.source, [(str(entry["name"]), entry["color"]) for entry in manifest.classes])
    predicted = (_predicted(pair, network, manifest, settings.watch, label_map) for pair in pairs)
    return _evaluation(predicted, list(label_map.names), label_map.ignore_index, number)


def evaluate_masks(
    masks: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    class_names: list[str],
    ignore_index: int = IGNORE_INDEX,
) -> Evaluation:
    """Score pairs of a predicted mask and a label, both uint8 [h, w] of one size.

    Raises ValueError when the sizes of a pair differ or a value is no class, AdapterError when nothing is labelled.
    """
    pairs = ((torch.tensor(mask), torch.tensor(label)) for mask, label in masks)
    return _evaluation(pairs, class_names, ignore_index, None)


def _predicted(
    pair: LabelledPair, network: SegmentationNetwork, manifest: Manifest, watch: WatchSettings, label_map: LabelMap
) -> tuple[Tensor, Tensor]:
    """Return the class map of an image and its label, [h, w] each, at the label's size."""
    pixels, read = read_pair(pair, label_map, DecodeLimits.of(watch))
    label = read.classes
    frame = fit_frame(
        pixels, manifest.input_height, manifest.input_width, Fit(manifest.input_fit, manifest.input_resample)
    )
    height, width = label.shape
    if abs(height * pixels.shape[1] - width * pixels.shape[0]) > max(*label.shape, *pixels.shape[:2]):
        raise RefusedImage(
            "bad_label",
            f"{pair.label}: {width}x{height} pixels have another aspect than {pair.image} of "
            f"{pixels.shape[1]}x{pixels.shape[0]}",
        )
    prediction = segment_fitted(network, [frame], [(height, width)])[0]
    return prediction, torch.from_numpy(label).to(prediction.device)


def _evaluation(
    pairs: Iterable[tuple[Tensor, Tensor]], class_names: list[str], ignore_index: int, version: int | None
) -> Evaluation:
    counts = count_images(pairs, len(class_names), ignore_index)
    if not counts.tp:
        raise AdapterError("nothing to evaluate: give at least one image with its label")
    tp, fp, fn = counts.sums()
    labelled = float((tp + fn).sum())
    if labelled == 0:
        raise AdapterError("nothing to evaluate: every label pixel is ignored")
    iou = [None if np.isnan(value) else float(value) for value in class_iou(tp, fp, fn)]
    return Evaluation(
        miou=float(mean_iou(tp, fp, fn)),
        iou=dict(zip(class_names, iou, strict=True)),
        images=len(counts.tp),
        pixel_accuracy=float(tp.sum()) / labelled,
        version=version,
    )
