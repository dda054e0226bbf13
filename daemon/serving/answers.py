"""What `/v1/segment` answers with: an index mask, a colour mask, an overlay (PNG), or JSON."""

import base64
import io
import json
from enum import StrEnum

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from adapters.palette import colour_mask, overlay
from configs.class_list import ClassInfo
from daemon.serving.batcher import Labels
from daemon.serving.errors import ApiError
from storage.manifest import Manifest

PNG_LEVEL = 1
"""Compression level: masks compress well at any level, and 1 is several times faster than the default 6."""


class AnswerFormat(StrEnum):
    """The value of `?format=`."""

    INDEX = "index"
    COLOR = "color"
    OVERLAY = "overlay"
    JSON = "json"

    @property
    def media_type(self) -> str:
        """Content-Type of the answer."""
        return "application/json" if self is AnswerFormat.JSON else "image/png"


def choose_format(query: str | None, accept: str) -> AnswerFormat:
    """The format that a request asks for: `?format=` first, then Accept, then the index mask.

    Raises ApiError 400 unknown_format.
    """
    if query is not None:
        if query not in list(AnswerFormat):
            raise ApiError(400, "unknown_format", f"format {query!r} is unknown; there are {', '.join(AnswerFormat)}")
        return AnswerFormat(query)
    wants_json = "application/json" in accept and "image/" not in accept
    return AnswerFormat.JSON if wants_json else AnswerFormat.INDEX


def class_infos(manifest: Manifest) -> list[ClassInfo]:
    """The class list of a version, in index order."""
    return [ClassInfo.model_validate(entry) for entry in manifest.classes]


def png(pixels: NDArray[np.uint8]) -> bytes:
    """PNG of a grey `[h, w]` or RGB `[h, w, 3]` image."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", compress_level=PNG_LEVEL)
    return stream.getvalue()


def render(kind: AnswerFormat, labels: Labels, manifest: Manifest, pixels: NDArray[np.uint8] | None) -> bytes:
    """The body of an answer with `labels` `[h, w]`; an overlay needs the image's `pixels` `[h, w, 3]`."""
    classes = class_infos(manifest)
    if kind is AnswerFormat.JSON:
        return json.dumps(_summary(labels, manifest.version, classes)).encode()
    if kind is AnswerFormat.COLOR:
        return png(colour_mask(labels, classes))
    if kind is AnswerFormat.OVERLAY and pixels is not None:
        return png(overlay(pixels, labels, classes))
    return png(labels)


def _summary(labels: Labels, version: int, classes: list[ClassInfo]) -> dict[str, object]:
    """Size, share of each class (0-1) and the index mask as base64 PNG."""
    pixels = np.bincount(labels.ravel(), minlength=len(classes))
    rows = [
        {"index": index, "name": entry.name, "pixels": int(pixels[index]), "share": float(pixels[index] / labels.size)}
        for index, entry in enumerate(classes)
    ]
    mask = base64.b64encode(png(labels)).decode()
    height, width = labels.shape
    return {"version": version, "height": height, "width": width, "classes": rows, "mask_png": mask}
