"""Ask the inference plane for masks over HTTP and compare them with labels that only this file reads."""

import io
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
"""Scorings that a swap may spoil before it is an error."""


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

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are labelled or predicted (0-1)."""
        return float(np.nanmean(self.iou))


def pair_up(images: Path, labels: Path) -> list[Pair]:
    """Pair each image of a folder with the label PNG of the same stem. Raises FileNotFoundError for one without."""
    pairs = [Pair(path, labels / f"{path.stem}.png") for path in sorted(images.iterdir())]
    for pair in pairs:
        if not pair.label.is_file():
            raise FileNotFoundError(f"{pair.label}: no label for {pair.image}")
    return pairs


def ask(client: httpx.Client, base: str, image: Path) -> tuple[Mask, int]:
    """Return the class mask [H, W] that the server answers for an image file, and the version that made it."""
    kind = f"image/{image.suffix[1:].lower().replace('jpg', 'jpeg')}"
    answer = client.post(f"{base}/v1/segment", content=image.read_bytes(), headers={"Content-Type": kind})
    answer.raise_for_status()
    with Image.open(io.BytesIO(answer.content)) as mask:
        return np.asarray(mask, np.uint8), int(answer.headers["X-Checkpoint-Version"])


def score_served(
    driven: DrivenDaemon, pairs: Sequence[Pair], on_answer: Callable[[int], None] | None = None
) -> ServedScore:
    """Let the server segment every image and score the masks; answers of two versions never make one score.

    A swap during the scoring starts it again. Raises DriveFailed when that happens too often or nothing serves.
    """
    base, settings = driven.url("serve"), driven.settings
    if base is None:
        raise DriveFailed(f"nothing serves\n{driven.tail()}")
    ignore = settings.source.ignore_index if settings.source else 255
    for _ in range(ATTEMPTS):
        masks, versions, matrix = [], set(), np.zeros((len(settings.classes),) * 2)
        with httpx.Client(timeout=60.0) as client:
            for number, pair in enumerate(pairs, 1):
                mask, version = ask(client, base, pair.image)
                masks.append(mask)
                versions.add(version)
                matrix += confusion(mask, read_label(pair.label), len(settings.classes), ignore)
                if on_answer is not None:
                    on_answer(number)
        if len(versions) == 1:
            hits = np.diag(matrix)
            iou = class_iou(hits, matrix.sum(axis=0) - hits, matrix.sum(axis=1) - hits)
            return ServedScore(versions.pop(), iou, tuple(masks))
    raise DriveFailed(f"the serving version changed during each of {ATTEMPTS} scorings")


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
    """Read a label image: class index [H, W]."""
    with Image.open(path) as image:
        return np.asarray(image, np.uint8)
