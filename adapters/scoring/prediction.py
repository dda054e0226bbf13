"""`mfmd predict`: masks of image files, through the same code path as serving."""

import io
import itertools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.checkpoints.checkpoint import load_version
from adapters.inference.palette import colour_mask
from adapters.inference.segment import choose_device, segment_image
from configs.class_list import ClassInfo
from configs.settings import Settings
from storage import durable
from storage.durable.digest import digest_of
from storage.errors import RefusedImage
from storage.layout import StateLayout
from storage.media.bounded import DecodeLimits, decode_bounded
from storage.media.images import Fit
from storage.media.own_png import mark_of, may_replace, with_mark
from storage.registry.registry import CheckpointRegistry

HASH_DIGITS = 16
"""Hex digits of the hash of an image's path in the mark of its masks."""


@dataclass(frozen=True, slots=True)
class PredictedFile:
    """Result of one image."""

    source: Path
    """The image."""
    version: int
    """The version that answered."""
    index: Path | None
    """PNG with the class index of each pixel, at the image's size; None when refused."""
    color: Path | None
    """PNG in the colours of the class list; None when refused."""
    reason: str | None = None
    """Reason of refusal (as in `storage.errors.RefusedImage`, or `unreadable`) and a message."""


def predict_files(
    settings: Settings, images: Sequence[Path], out: Path, version: int | None = None
) -> Iterator[PredictedFile]:
    """Segment each image with `version` (default: serving); write `STEM.png` and `STEM_color.png` to `out`.

    A second image of the same stem becomes `STEM_2.png`. Only masks that an earlier call made of the same image are
    replaced. An image that cannot be read, or whose mask has no place, is reported, not fatal. Raises NoCheckpoint when
    nothing serves, UnknownVersion when `version` does not exist, CorruptCheckpoint when it does not verify.
    """
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    number = registry.serving_version() if version is None else version
    network, manifest = load_version(registry, number, choose_device(settings.serving.device))
    size, fit = (manifest.input_height, manifest.input_width), Fit(manifest.input_fit, manifest.input_resample)
    classes = [ClassInfo.model_validate(entry) for entry in manifest.classes]
    durable.make_directory(out, shared=True)
    places = _Places(out, images)
    for source in images:
        try:
            pixels = decode_bounded(source, DecodeLimits.of(settings.watch)).pixels
            index, color = places.of(source)
        except (RefusedImage, OSError) as error:
            yield PredictedFile(source, number, None, None, f"{_reason(error)}: {error}")
            continue
        labels = segment_image(network, pixels, size, fit)
        _write(index, labels, source)
        _write(color, colour_mask(labels, classes), source)
        yield PredictedFile(source, number, index, color)


class _Places:
    """Where the masks of one call go: never over an image of it, over masks of another image, or a file of others."""

    def __init__(self, out: Path, images: Sequence[Path]) -> None:
        self._out, self._images = out, {os.path.realpath(image) for image in images}
        self._taken: set[Path] = set()

    def of(self, source: Path) -> tuple[Path, Path]:
        """Return the places of index and colour mask, the first free ones of `stem`, `stem_2`, and so on.

        Raises FileExistsError when a file has such a name that is an image of this call or not made by mfmd.
        """
        for number in itertools.count(1):
            name = source.stem if number == 1 else f"{source.stem}_{number}"
            places = self._out / f"{name}.png", self._out / f"{name}_color.png"
            for path in places:
                if os.path.realpath(path) in self._images or not may_replace(path):
                    raise FileExistsError(f"{path} exists, and is no mask made by mfmd; give --out another folder")
            if self._taken.isdisjoint(places) and {mark_of(path) for path in places} <= {None, _mark(source)}:
                self._taken.update(places)
                return places
        raise AssertionError("itertools.count ended")


def _write(path: Path, pixels: NDArray[np.uint8], source: Path) -> None:
    png = io.BytesIO()
    Image.fromarray(pixels).save(png, "PNG")
    durable.write_bytes(path, with_mark(png.getvalue(), _mark(source)), shared=True)


def _mark(source: Path) -> str:
    """Return what tells masks of two images apart: the hash of the path, because a path may say more than it should."""
    return f"predict {digest_of(os.fsencode(os.path.realpath(source)))[:HASH_DIGITS]}"


def _reason(error: RefusedImage | OSError) -> str:
    if isinstance(error, RefusedImage):
        return error.reason
    return "output_exists" if isinstance(error, FileExistsError) else "unreadable"
