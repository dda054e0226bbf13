"""Images of the benchmark: labelled parts for scoring, and the target in a real frame buffer."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import nn

from adapters.inference.segment import segment_fitted
from adapters.scoring.evaluation import Evaluation, evaluate_masks
from configs.settings import Settings
from storage.buffer.catalog_records import FileFact
from storage.buffer.frame_writer import NewFrame
from storage.buffer.frames import FrameBuffer
from storage.layout import StateLayout
from storage.media.bounded import DecodeLimits, decode_bounded
from storage.media.images import fit_frame
from storage.source.label_file import read_label
from storage.source.label_map import LabelMap
from storage.source.pairing import pair_labels

LIMITS = DecodeLimits(max_bytes=1 << 24, max_pixels=1 << 24, seconds=10.0)
"""CamVid's files are far below."""
IGNORED = 255

Pixels = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """An image [h, w, 3] with its label [h, w], both uint8."""

    name: str
    image: Pixels
    label: Pixels


@cache
def labelled_part(folder: Path, classes: int) -> tuple[LabelledImage, ...]:
    """Return the images below `folder`/images with their labels below `folder`/labels, sorted by name."""
    label_map = LabelMap.of(None, [(str(number), (number, 0, 0)) for number in range(classes)])
    return tuple(
        LabelledImage(
            pair.image.stem,
            decode_bounded(pair.image, LIMITS).pixels,
            read_label(pair.label, label_map, LIMITS).classes,
        )
        for pair in pair_labels(folder / "images", folder / "labels", "")
    )


def transformed(
    images: Iterable[LabelledImage], transform: Callable[[Pixels, int], Pixels]
) -> tuple[LabelledImage, ...]:
    """Return `images` with `transform(image, number)` applied; labels stay."""
    return tuple(LabelledImage(one.name, transform(one.image, number), one.label) for number, one in enumerate(images))


def fill_buffer(state: Path, settings: Settings, images: Iterable[LabelledImage]) -> StateLayout:
    """Return a state directory whose frame buffer holds `images` without labels; keep one that holds frames."""
    layout = StateLayout(state)
    layout.create()
    with FrameBuffer.open(layout, settings.buffer, writable=True) as buffer:
        if not buffer.records():
            buffer.append([_new_frame(one, number, settings) for number, one in enumerate(images)])
    return layout


def _new_frame(one: LabelledImage, number: int, settings: Settings) -> NewFrame:
    fitted = fit_frame(one.image, settings.buffer.height, settings.buffer.width)
    digest = hashlib.sha256(one.image.tobytes()).hexdigest()
    return NewFrame(
        FileFact(f"{one.name}.png", number, one.image.nbytes), digest, float(number), *one.label.shape, fitted
    )


def predicted(network: nn.Module, images: Iterable[LabelledImage], settings: Settings) -> Iterator[Pixels]:
    """Yield the masks of `network` (in eval mode) from frames of `settings.buffer`, at the labels' resolution."""
    height, width = settings.buffer.height, settings.buffer.width
    for one in images:
        size = (one.label.shape[0], one.label.shape[1])
        yield np.asarray(segment_fitted(network, [fit_frame(one.image, height, width)], [size])[0].cpu())


def score(network: nn.Module, images: Sequence[LabelledImage], settings: Settings) -> Evaluation:
    """Return the mIoU of what `predicted` yields."""
    pairs = zip(predicted(network, images, settings), (one.label for one in images), strict=True)
    return evaluate_masks(pairs, [entry.name for entry in settings.classes], IGNORED)
