"""Ask the inference plane for masks over HTTP and compare them with labels that only this file reads."""

import io
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.scoring.scores.iou import class_iou
from daemon.demo.driving import DriveFailed, DrivenDaemon

Mask = NDArray[np.uint8]
ATTEMPTS = 3
"""Scorings that a swap may spoil before it is an error: answers of two versions are never mixed into one score."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its label image."""

    image: Path
    label: Path


@dataclass(frozen=True, slots=True)
class ServedScore:
    """What one version answered on a set of images."""

    version: int
    """Version named in every answer."""
    iou: NDArray[np.float64]
    """IoU of each class (0-1); NaN where a class is neither labelled nor predicted."""
    masks: tuple[Mask, ...]
    """The answers, class index [H, W] each, in the order of the images."""
    seconds: float
    """Time that all answers took (seconds)."""

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are labelled or predicted (0-1)."""
        return float(np.nanmean(self.iou))


def pair_up(images: Path, labels: Path) -> list[Pair]:
    """Images of a folder with the label PNGs of the same stem, by name. Raises FileNotFoundError for one without."""
    pairs = [Pair(path, labels / f"{path.stem}.png") for path in sorted(images.iterdir())]
    for pair in pairs:
        if not pair.label.is_file():
            raise FileNotFoundError(f"{pair.label}: no label for {pair.image}")
    return pairs


def ask(client: httpx.Client, base: str, image: Path) -> tuple[Mask, int]:
    """The class mask [H, W] that the server answers for an image file, and the version that made it."""
    answer = client.post(
        f"{base}/v1/segment",
        content=image.read_bytes(),
        headers={"Content-Type": f"image/{image.suffix[1:].lower().replace('jpg', 'jpeg')}", "Accept": "image/png"},
    )
    answer.raise_for_status()
    with Image.open(io.BytesIO(answer.content)) as mask:
        return np.asarray(mask, np.uint8), int(answer.headers["X-Checkpoint-Version"])


def score_served(
    driven: DrivenDaemon, pairs: Sequence[Pair], on_answer: Callable[[int], None] | None = None
) -> ServedScore:
    """Let the server segment every image and score the masks at the labels' own size.

    A swap during the scoring starts it again. Raises DriveFailed when that happens too often or nothing serves.
    """
    for _ in range(ATTEMPTS):
        start = time.monotonic()
        masks, versions = _ask_all(driven, [pair.image for pair in pairs], on_answer)
        if len(versions) == 1:
            iou = _score(masks, [pair.label for pair in pairs], driven)
            return ServedScore(versions.pop(), iou, tuple(masks), time.monotonic() - start)
    raise DriveFailed(f"the serving version changed during each of {ATTEMPTS} scorings")


def _ask_all(
    driven: DrivenDaemon, images: Sequence[Path], on_answer: Callable[[int], None] | None
) -> tuple[list[Mask], set[int]]:
    base = driven.url("serve")
    if base is None:
        raise DriveFailed(f"nothing serves\n{driven.tail()}")
    masks, versions = [], set()
    with httpx.Client(timeout=60.0) as client:
        for image in images:
            mask, version = ask(client, base, image)
            masks.append(mask)
            versions.add(version)
            if on_answer is not None:
                on_answer(len(masks))
    return masks, versions


def _score(masks: Sequence[Mask], labels: Sequence[Path], driven: DrivenDaemon) -> NDArray[np.float64]:
    classes = len(driven.settings.classes)
    source = driven.settings.source
    ignore = source.ignore_index if source else 255
    total = sum(
        (confusion(mask, read_label(label), classes, ignore) for mask, label in zip(masks, labels, strict=True))
    )
    matrix = np.asarray(total, np.float64)
    hits = np.diag(matrix)
    return class_iou(hits, matrix.sum(axis=0) - hits, matrix.sum(axis=1) - hits)


def confusion(mask: Mask, label: Mask, classes: int, ignore: int) -> NDArray[np.int64]:
    """Pixel counts [classes, classes], rows labels, columns predictions, of two class maps [H, W].

    Raises ValueError when their sizes differ.
    """
    if mask.shape != label.shape:
        raise ValueError(f"mask {mask.shape} and label {label.shape} differ in size")
    counted = label != ignore
    index = label[counted].astype(np.int64) * classes + mask[counted]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def read_label(path: Path) -> Mask:
    """A label image, class index [H, W]."""
    with Image.open(path) as image:
        return np.asarray(image, np.uint8)
