"""`mfmd predict`: masks of image files, through the same code path as serving."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from adapters.checkpoints.checkpoint import load_version
from adapters.inference.palette import colour_mask
from adapters.inference.segment import choose_device, segment_image
from configs.class_list import ClassInfo
from configs.settings import Settings
from storage.durable.permissions import shared_files
from storage.errors import RefusedImage
from storage.layout import StateLayout
from storage.media.bounded import DecodeLimits, decode_bounded
from storage.registry.registry import CheckpointRegistry


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

    A second image of the same stem becomes `STEM_2.png`. An image that cannot be read is reported, not fatal. Raises
    NoCheckpoint when nothing serves, UnknownVersion when `version` does not exist, CorruptCheckpoint when it does not
    verify.
    """
    registry = CheckpointRegistry(StateLayout(settings.state).checkpoints)
    number = registry.serving_version() if version is None else version
    network, manifest = load_version(registry, number, choose_device(settings.serving.device))
    size = (manifest.input_height, manifest.input_width)
    classes = [ClassInfo.model_validate(entry) for entry in manifest.classes]
    with shared_files():
        out.mkdir(parents=True, exist_ok=True)
    taken: set[str] = set()
    for source in images:
        try:
            pixels = decode_bounded(source, DecodeLimits.of(settings.watch)).pixels
        except (RefusedImage, OSError) as error:
            reason = error.reason if isinstance(error, RefusedImage) else "unreadable"
            yield PredictedFile(source, number, None, None, f"{reason}: {error}")
            continue
        labels = segment_image(network, pixels, size)
        name = _free_name(source.stem, taken)
        index, color = out / f"{name}.png", out / f"{name}_color.png"
        with shared_files():
            Image.fromarray(labels).save(index)
            Image.fromarray(colour_mask(labels, classes)).save(color)
        yield PredictedFile(source, number, index, color)


def _free_name(stem: str, taken: set[str]) -> str:
    """Return `stem`, `stem_2`, ..., so that no mask of this call overwrites another."""
    number, name = 1, stem
    while {name, f"{name}_color"} & taken:
        number += 1
        name = f"{stem}_{number}"
    taken.update({name, f"{name}_color"})
    return name
