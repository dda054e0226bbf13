"""The size that an imported model was trained at, and how images reach it, from its preprocessor_config.json.

A mask is the model's own only when mfmd scales images as the model's processor does. Most processors squash; those of
the mask transformers keep the aspect between a shortest and a longest edge.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from adapters.errors import UnsupportedModel
from adapters.networks.huggingface.pixels import processor_name
from configs.buffer import Resample
from configs.settings import Settings
from storage.media.images import Fit

LEAST, MOST = 32, 16_384
"""Sides that a frame can have (pixels)."""
_ASPECT = 16 / 9
"""Longest side by shortest where a processor does not limit it; most cameras have it."""
_FILTERS: Mapping[object, Resample] = {
    0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming",
}  # fmt: skip
"""Filters by Pillow's numbers."""
_SQUARES: Mapping[str, Any] = {"Segformer": 512, "Beit": 224, "DPT": 384, "Sapiens2": {"height": 1024, "width": 768}}
"""Sizes that processors of transformers have by default, by the prefix of their names; a number is a square here."""
_EDGES: Mapping[str, Any] = {
    "MobileNetV2": {"shortest_edge": 256},
    "MobileViT": {"shortest_edge": 224},
    "Mask": {"shortest_edge": 800, "longest_edge": 1333},
    "OneFormer": {"shortest_edge": 800, "longest_edge": 1333},
    "Eomt": {"shortest_edge": 640, "longest_edge": 640},
}
"""The same, where a number is the shortest edge."""
_BICUBIC = ("Beit", "DPT", "MobileViT")
"""Processors whose filter is bicubic by default."""
_UNMADE = {
    "do_center_crop": "segments the whole image, not its middle",
    "do_split_image": "scales the image into one frame instead of cutting it into tiles",
    "do_pad": "gives the model the image without padding",
    "keep_aspect_ratio": "scales the image to fit, so that one side may be shorter",
}
"""What a processor may ask for and mfmd does otherwise."""


class OwnInput(NamedTuple):
    """How a model's processor brings images to the model."""

    height: int
    """Frame height (pixels)."""
    width: int
    """Frame width (pixels)."""
    fit: Fit
    """How images are scaled into the frame."""

    def settings(self) -> dict[str, Any]:
        """Return the values of `buffer` that say the same."""
        return {
            "height": self.height,
            "width": self.width,
            "advanced": {"fit": self.fit.mode, "resample": self.fit.resample},
        }


def own_input(preprocessor: Mapping[str, Any] | None) -> OwnInput | None:
    """Return what a preprocessor_config.json says; None when it says no size that a frame can have.

    Raises UnsupportedModel, naming the field, for a size or filter that no processor has.
    """
    if preprocessor is None or not preprocessor.get("do_resize", True):
        return None
    name = processor_name(preprocessor)
    edges = next((size for start, size in _EDGES.items() if name.startswith(start)), None)
    square = next((size for start, size in _SQUARES.items() if name.startswith(start)), None)
    size = _read(preprocessor, preprocessor.get("size", edges or square), edge=edges is not None)
    if size is None or not all(LEAST <= side <= MOST for side in size[:2]):
        return None
    height, width, squash = size
    squash = squash and not preprocessor.get("keep_aspect_ratio")
    resample = _resample(preprocessor, "bicubic" if name.startswith(_BICUBIC) else "bilinear")
    return OwnInput(height, width, Fit("squash" if squash else "aspect", resample))


def input_notes(preprocessor: Mapping[str, Any] | None, settings: Settings) -> list[str]:
    """Return what a user should know where frames are not what the model's processor makes of an image."""
    if preprocessor is None:
        return []
    notes = [f"preprocessor_config.json: {key}: mfmd {what}" for key, what in _UNMADE.items() if preprocessor.get(key)]
    if preprocessor.get("do_reduce_labels") or preprocessor.get("reduce_labels"):
        notes.append(
            "preprocessor_config.json: do_reduce_labels: label files of its data set count classes from 1, with 0 for "
            "none; set source.label_format: ade20k before such files are read"
        )
    own, buffer = own_input(preprocessor), settings.buffer
    frames = OwnInput(buffer.height, buffer.width, Fit.of(buffer))
    if own is not None and own != frames:
        notes.append(
            f"the model's processor makes images {_said(own)}; frames are {_said(frames)}, so masks differ from the "
            f"model's own; these settings give its own: buffer: {_flow(own.settings())}"
        )
    return notes


def _read(preprocessor: Mapping[str, Any], size: Any, *, edge: bool) -> tuple[int, int, bool] | None:
    """Return frame height and width (pixels), and whether the image is squashed into them; None without a size."""
    if size is None:
        return None
    if isinstance(size, list) and len(size) == 2:
        size = dict(zip(("height", "width"), size, strict=True))
    if not isinstance(size, dict):
        size = (
            {"shortest_edge": size, "longest_edge": preprocessor.get("max_size")}
            if edge
            else {"height": size, "width": size}
        )
    sides = {key: _side(size, key) for key, value in size.items() if value is not None}
    if {"height", "width"} <= sides.keys():
        return sides["height"], sides["width"], True
    if {"max_height", "max_width"} <= sides.keys():
        return sides["max_height"], sides["max_width"], False
    if "shortest_edge" in sides:
        shortest = sides["shortest_edge"]
        open_end = int(shortest * _ASPECT) // LEAST * LEAST  # whole cells of the deepest map
        return shortest, max(shortest, sides.get("longest_edge", open_end)), False
    if "longest_edge" in sides:
        return sides["longest_edge"], sides["longest_edge"], False
    raise UnsupportedModel(
        f"preprocessor_config.json: size is {size}; height and width, or shortest_edge and longest_edge, are needed"
    )


def _side(size: Mapping[str, Any], key: str) -> int:
    value = size[key]
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value < 1 or value % 1 != 0:
        raise UnsupportedModel(f"preprocessor_config.json: size.{key} is {value!r}; a whole number of pixels is needed")
    return int(value)


def _resample(preprocessor: Mapping[str, Any], default: Resample) -> Resample:
    value = preprocessor.get("resample")
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int) or value not in _FILTERS:
        raise UnsupportedModel(f"preprocessor_config.json: resample is {value!r}; a number from 0 to 5 is needed")
    return _FILTERS[value]


def _said(shape: OwnInput) -> str:
    how = "squashed" if shape.fit.mode == "squash" else "scaled to fit"
    return f"{how} to {shape.height}x{shape.width} ({shape.fit.resample})"


def _flow(values: Mapping[str, Any]) -> str:
    return (
        "{"
        + ", ".join(f"{key}: {_flow(item) if isinstance(item, dict) else item}" for key, item in values.items())
        + "}"
    )
