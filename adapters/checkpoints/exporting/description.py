"""`mfmd.json` beside an exported model: what a program needs to know to use it."""

from pathlib import Path

from pydantic import BaseModel

from adapters.networks.pixels import IMAGENET_MEAN, IMAGENET_STD
from storage import durable
from storage.manifest import Manifest

DESCRIPTION = "mfmd.json"


class Description(BaseModel):
    """The version, its classes, and the pixels that the model takes."""

    version: int
    """Number in the registry."""
    classes: tuple[str, ...]
    """Names by class index: channel k of the logits."""
    colors: tuple[tuple[int, int, int], ...]
    """RGB of each class."""
    size: tuple[int, int]
    """Height and width that images were fitted to in training and serving (pixels)."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """The network takes (RGB / 255 - mean) / std; a Hugging Face model what its preprocessor_config.json says."""
    std: tuple[float, float, float] = IMAGENET_STD
    """See `mean`."""
    free_dimensions: tuple[str, ...]
    """Dimensions of the images `[batch, 3, height, width]` that may differ from those of the example at export."""


def describe(manifest: Manifest, free: tuple[str, ...], folder: Path) -> None:
    """Write `mfmd.json` of a version into `folder`."""
    record = Description(
        version=manifest.version,
        classes=tuple(entry["name"] for entry in manifest.classes),
        colors=tuple(tuple(entry["color"]) for entry in manifest.classes),
        size=(manifest.input_height, manifest.input_width),
        free_dimensions=free,
    )
    durable.write_record(folder / DESCRIPTION, record)
