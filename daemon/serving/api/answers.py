"""Answers of `/v1/segment`: an index mask, a colour mask, an overlay (PNG), or JSON."""

import base64
import io
from collections.abc import Callable
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.inference.palette import bands, colour_mask, overlay
from configs.class_list import ClassInfo
from daemon.serving.api.problems import Message
from daemon.serving.batcher import Labels
from daemon.serving.errors import ApiError
from storage.registry.manifest import Manifest

PNG_LEVEL = 1
"""Compression level: masks compress well at any level, and 1 is several times faster than the default 6."""


class AnswerFormat(StrEnum):
    """Formats of an answer."""

    INDEX = "index"
    COLOR = "color"
    OVERLAY = "overlay"
    JSON = "json"

    @property
    def media_type(self) -> str:
        """Content-Type of the answer."""
        return "application/json" if self is AnswerFormat.JSON else "image/png"


def choose_format(query: str | None, accept: str) -> AnswerFormat:
    """Return the format of a request: `?format=`, else JSON if Accept names it, else the index mask.

    Raises ApiError 400 unknown_format.
    """
    if query is None:
        return AnswerFormat.JSON if "application/json" in accept.lower() else AnswerFormat.INDEX
    if query not in list(AnswerFormat):
        raise ApiError(400, "unknown_format", f"format {query[:32]!r} is unknown; there are {', '.join(AnswerFormat)}")
    return AnswerFormat(query)


def class_infos(manifest: Manifest) -> list[ClassInfo]:
    """Return the class list of a version, in index order."""
    return [ClassInfo.model_validate(entry) for entry in manifest.classes]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Encode a grey `[h, w]` or RGB `[h, w, 3]` image as PNG."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()


class ClassArea(Message):
    """Area of one class in an image."""

    index: int
    """Index in the mask."""
    name: str
    """Name in the class list."""
    pixels: int
    """Pixels of this class."""
    share: float
    """Their share of the image (0-1)."""


class SegmentSummary(Message):
    """The JSON answer of `/v1/segment`."""

    version: int
    """Version that answered."""
    height: int
    """Height of the image and the mask (pixels)."""
    width: int
    """Width of the image and the mask (pixels)."""
    classes: list[ClassArea]
    """Area of every class, including absent ones, in index order."""
    mask_png: str
    """The index mask, a PNG in base64."""


def render(kind: AnswerFormat, labels: Labels, manifest: Manifest, image: Callable[[], NDArray[np.uint8]]) -> bytes:
    """Return the body of an answer with `labels` `[h, w]`; `image` gives pixels `[h, w, 3]`, for an overlay only."""
    classes = class_infos(manifest)
    match kind:
        case AnswerFormat.JSON:
            return _summary(labels, manifest.version, classes).model_dump_json().encode()
        case AnswerFormat.COLOR:
            return png(colour_mask(labels, classes))
        case AnswerFormat.OVERLAY:
            return png(overlay(image(), labels, classes))
        case AnswerFormat.INDEX:
            return png(labels)


def _summary(labels: Labels, version: int, classes: list[ClassInfo]) -> SegmentSummary:
    pixels = np.sum([np.bincount(labels[rows].ravel(), minlength=256) for rows in bands(labels)], axis=0).tolist()
    areas = [
        ClassArea(index=index, name=entry.name, pixels=pixels[index], share=pixels[index] / labels.size)
        for index, entry in enumerate(classes)
    ]
    mask, (height, width) = base64.b64encode(png(labels)).decode(), labels.shape
    return SegmentSummary(version=version, height=height, width=width, classes=areas, mask_png=mask)
