"""What a model's own files say that a configuration needs: its class names, and the size of its images."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from adapters.checkpoints.class_names import names_of
from adapters.checkpoints.model_files import read_config, read_preprocessor
from adapters.errors import UnsupportedModel

_STEP = 32
"""A side that a processor leaves open becomes a multiple of it (pixels): the deepest map has whole cells then."""
_ASPECT = 16 / 9
"""Width by height where a processor gives the shortest side alone; most cameras have it."""


class ModelFacts(NamedTuple):
    """What the files of a model say."""

    names: list[str] | None
    """Class names by index; None when config.json names none."""
    buffer: dict[str, Any]
    """Values of `buffer` that fit its image processor; empty when there is none."""


def facts_of(folder: Path) -> ModelFacts:
    """Return what a Hugging Face directory says of its model.

    Raises UnsupportedModel when it is none, or when a file in it cannot be read.
    """
    if not folder.is_dir():
        raise UnsupportedModel(f"{folder}: no such directory; give a Hugging Face directory or a hub id")
    names = names_of(read_config(folder))
    return ModelFacts(names, _buffer_of(read_preprocessor(folder) or {}))


def _buffer_of(preprocessor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the size of frames (pixels) that a preprocessor_config.json asks for, as values of `buffer`."""
    size = preprocessor.get("size")
    if preprocessor.get("do_center_crop") and "crop_size" in preprocessor:
        size = preprocessor["crop_size"]
    if not isinstance(size, Mapping):
        size = {"height": size, "width": size}
    height, width = _pixels(size.get("height")), _pixels(size.get("width"))
    if height and width:
        return {"height": height, "width": width}
    shortest, longest = _pixels(size.get("shortest_edge")), _pixels(size.get("longest_edge"))
    if not shortest:
        return {}
    step = math.lcm(_STEP, _pixels(preprocessor.get("size_divisor")) or 1)
    return {"height": shortest, "width": max(shortest, int((longest or shortest * _ASPECT) // step) * step)}


def _pixels(value: object) -> int:
    """Return a side that frames can have; 0 for another value."""
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= _STEP else 0
