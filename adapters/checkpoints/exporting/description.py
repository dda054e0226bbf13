"""Write `mfmd.json` beside an exported model."""

from pathlib import Path

from adapters.networks.pixels import IMAGENET_MEAN, IMAGENET_STD
from storage import durable
from storage.registry.manifest import Manifest
from storage.registry.mirrors import DESCRIPTION, ExportDescription
from storage.registry.versions import WEIGHTS


def describe(manifest: Manifest, free: tuple[str, ...], folder: Path) -> None:
    """Write `mfmd.json` of a version into `folder`."""
    record = ExportDescription(
        version=manifest.version,
        weights=manifest.files[WEIGHTS].sha256,
        classes=tuple(entry["name"] for entry in manifest.classes),
        colors=tuple(tuple(entry["color"]) for entry in manifest.classes),
        size=(manifest.input_height, manifest.input_width),
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        free_dimensions=free,
    )
    durable.write_record(folder / DESCRIPTION, record)
