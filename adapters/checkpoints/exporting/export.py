"""Export a version: a folder with the model in another program's format, complete or absent."""

import shutil
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal, get_args

import torch

from adapters.checkpoints.checkpoint import load_version
from adapters.checkpoints.exporting.hugging_face import write_huggingface
from adapters.checkpoints.exporting.programs import write_onnx, write_torch_export
from adapters.errors import ExportRefused
from adapters.networks.network import IMAGENET_MEAN, IMAGENET_STD, SegmentationNetwork
from storage import durable
from storage.durable.permissions import shared_files
from storage.registry.manifest import Manifest
from storage.registry.mirrors import DESCRIPTION, ExportDescription
from storage.registry.registry import CheckpointRegistry
from storage.registry.versions import WEIGHTS

Format = Literal["huggingface", "onnx", "torch-export"]
FORMATS: tuple[Format, ...] = get_args(Format)
"""Formats of `mfmd export --format`."""
Writer = Callable[[SegmentationNetwork, Manifest, Path], tuple[str, ...]]
"""Writes a version's files into a folder; returns the free dimensions of the input."""
_WRITERS: dict[Format, Writer] = {
    "huggingface": write_huggingface,
    "onnx": write_onnx,
    "torch-export": write_torch_export,
}


@shared_files()
def export_version(registry: CheckpointRegistry, version: int, format: Format, target: Path) -> list[str]:
    """Write `version` to the folder `target`, which must be empty or missing; returns the names of its files.

    The folder holds the network alone, nothing of its training. Raises ExportRefused when `target` holds something or
    the version has no such format, UnknownVersion or CorruptCheckpoint.
    """
    target = target.resolve()  # `.` has no name to write beside
    _check_target(target)
    network, manifest = load_version(registry, version, torch.device("cpu"))
    durable.make_directory(target.parent)
    temporary = target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}{durable.PARTIAL}")
    temporary.mkdir()
    try:
        free = _WRITERS[format](network, manifest, temporary)
        describe(manifest, free, temporary)
        if target.exists():
            target.rmdir()
        durable.publish_directory(temporary, target)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    return sorted(path.name for path in target.iterdir())


def _check_target(target: Path) -> None:
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists():
        what = "holds files already" if target.is_dir() else "is a file"
        raise ExportRefused(f"{target}: {what}; give --out a new or an empty folder")


def describe(manifest: Manifest, free: tuple[str, ...], folder: Path) -> None:
    """Write `mfmd.json` of a version into `folder`."""
    record = ExportDescription(
        version=manifest.version,
        weights=manifest.files[WEIGHTS].sha256,
        classes=tuple(entry["name"] for entry in manifest.classes),
        colors=tuple(tuple(entry["color"]) for entry in manifest.classes),
        size=(manifest.input_height, manifest.input_width),
        fit=manifest.input_fit,
        resample=manifest.input_resample,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        free_dimensions=free,
    )
    durable.write_record(folder / DESCRIPTION, record)
