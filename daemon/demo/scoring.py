"""Ask the inference plane for masks over HTTP and compare them with labels that only this file reads."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from adapters.scoring.scores.counts import confusion
from adapters.scoring.scores.iou import class_iou
from daemon.demo.driving import DriveFailed, DrivenDaemon

Mask = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its label image."""

    image: Path
    label: Path


@dataclass(frozen=True, slots=True)
class ServedScore:
    """What one version answered on a set of images."""

    version: int
    iou: NDArray[np.float64]
    """IoU of each class (0-1); NaN where a class is neither labelled nor predicted."""
    masks: tuple[Mask, ...]
    """The answers, class index [H, W] each, in the order of the images."""

    @property
    def miou(self) -> float:
        """Mean IoU over the classes that are labelled or predicted (0-1)."""
        return float(np.nanmean(self.iou))


def pair_up(folder: Path) -> list[Pair]:
    """Pair each file of `folder`/images with the PNG of the same stem in `folder`/labels."""
    return [Pair(path, folder / "labels" / f"{path.stem}.png") for path in sorted((folder / "images").iterdir())]


def ask(client: httpx.Client, base: str, image: Path) -> tuple[Mask, int]:
    """Return the class mask [H, W] that the server answers for an image file, and the version that made it."""
    kind = f"image/{image.suffix[1:].lower().replace('jpg', 'jpeg')}"
    answer = client.post(f"{base}/v1/segment", content=image.read_bytes(), headers={"Content-Type": kind})
    answer.raise_for_status()
    return read_mask(io.BytesIO(answer.content)), int(answer.headers["X-Checkpoint-Version"])


def score_served(driven: DrivenDaemon, pairs: Sequence[Pair]) -> ServedScore:
    """Let the server segment every image and score the masks. Raises DriveFailed when two versions answered."""
    base, settings, classes = driven.url("serve"), driven.settings, len(driven.settings.classes)
    if base is None:
        raise DriveFailed(f"nothing serves\n{driven.tail()}")
    ignore = settings.source.ignore_index if settings.source else 255
    masks, versions, matrix = [], set(), np.zeros((classes, classes))
    with httpx.Client(timeout=60.0) as client:
        for pair in pairs:
            mask, version = ask(client, base, pair.image)
            masks.append(mask)
            versions.add(version)
            label = torch.from_numpy(read_mask(pair.label))
            matrix += confusion(torch.from_numpy(mask), label, classes, ignore).numpy()
    if len(versions) != 1:
        raise DriveFailed(f"versions {sorted(versions)} answered: what serves changed during the scoring")
    hits = np.diag(matrix)
    iou = class_iou(hits, matrix.sum(axis=0) - hits, matrix.sum(axis=1) - hits)
    return ServedScore(versions.pop(), iou, tuple(masks))


def read_mask(file: Path | io.BytesIO) -> Mask:
    """Read a mask or label image: class index [H, W]."""
    with Image.open(file) as image:
        return np.array(image, np.uint8)
