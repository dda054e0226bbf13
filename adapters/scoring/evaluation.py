"""Score a version on labelled images, at the resolution of the labels."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from adapters.checkpoints.checkpoint import load_version
from adapters.errors import AdapterError
from adapters.inference.segment import choose_device, segment_fitted
from adapters.networks.network import SegmentationNetwork
from adapters.scoring.scores.counts import CountsOverImages
from adapters.scoring.scores.iou import class_iou, mean_iou
from configs.settings import Settings
from storage.errors import RefusedImage
from storage.layout import StateLayout
from storage.media.images import decode_image, fit_frame, read_label
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry
from storage.rounds.records import ImageCounts
from storage.source.pairing import LabelledPair, pair_labels

IGNORE_INDEX = 255
"""Label value to ignore when no source settings define another."""


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

    Labels are found as for source images (`source.label_suffix`). Predictions are scaled to the label's size. Raises
    SourceRefused (pairs), RefusedImage (a file), UnknownVersion, CorruptCheckpoint, AdapterError (nothing is labelled).
    """
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    number = registry.serving_version() if version is None else version
    pairs = pair_labels(images, labels, settings.source.label_suffix if settings.source else "")
    network, manifest = load_version(registry, number, choose_device(settings.serving.device))
    ignored = settings.source.ignore_index if settings.source else IGNORE_INDEX
    counts = CountsOverImages(len(manifest.classes), ignored)
    for pair in pairs:
        _count_pair(counts, pair, network, manifest, settings, ignored)
    return _evaluation(counts.counts(), [str(entry["name"]) for entry in manifest.classes], number)


def evaluate_masks(
    masks: Iterable[tuple[NDArray[np.uint8], NDArray[np.uint8]]],
    class_names: list[str],
    ignore_index: int = IGNORE_INDEX,
) -> Evaluation:
    """Score pairs of a predicted mask and a label, both uint8 [h, w] of one size.

    Raises ValueError when the sizes of a pair differ or a value is no class, AdapterError when nothing is labelled.
    """
    counts = CountsOverImages(len(class_names), ignore_index)
    for mask, label in masks:
        counts.add(torch.tensor(mask), torch.tensor(label))
    return _evaluation(counts.counts(), class_names, None)


def _count_pair(
    counts: CountsOverImages,
    pair: LabelledPair,
    network: SegmentationNetwork,
    manifest: Manifest,
    settings: Settings,
    ignored: int,
) -> None:
    watch = settings.watch
    pixels = decode_image(pair.image, max_bytes=watch.max_file_bytes, max_pixels=watch.max_pixels)
    label = read_label(pair.label, num_classes=len(manifest.classes), ignore_index=ignored)
    frame = fit_frame(pixels, manifest.input_height, manifest.input_width)
    height, width = label.shape
    if abs(height * pixels.shape[1] - width * pixels.shape[0]) > max(*label.shape, *pixels.shape[:2]):
        raise RefusedImage(
            "bad_label",
            f"{pair.label}: {width}x{height} pixels have another aspect than {pair.image} of "
            f"{pixels.shape[1]}x{pixels.shape[0]}",
        )
    prediction = segment_fitted(network, [frame], [(height, width)])[0]
    counts.add(prediction, torch.from_numpy(label).to(prediction.device))


def _evaluation(counts: ImageCounts, class_names: list[str], version: int | None) -> Evaluation:
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
