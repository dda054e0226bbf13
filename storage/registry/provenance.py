"""Provenance of a version: library versions, mfmd's source, the settings, the frames. It imports no library."""

import hashlib
import json
import platform
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from storage.buffer.catalog_records import FrameRecord
from storage.registry.manifest import BufferSnapshot

LIBRARIES = ("mfmd", "torch", "transformers", "accelerate", "safetensors", "numpy", "zarr")
ROOMS = ("configs", "storage", "adapters", "daemon")


def snapshot_of(frames: Sequence[FrameRecord]) -> BufferSnapshot | None:
    """Return the frames of a round in a few numbers; None without frames."""
    if not frames:
        return None
    digest = hashlib.sha256("\n".join(sorted(frame.digest for frame in frames)).encode()).hexdigest()
    held = sum(frame.holdout for frame in frames)
    return BufferSnapshot(
        train=len(frames) - held,
        holdout=held,
        digest=digest,
        first=min(frame.id for frame in frames),
        last=max(frame.id for frame in frames),
        oldest=min(frame.captured_at for frame in frames),
        newest=max(frame.captured_at for frame in frames),
    )


def library_versions() -> dict[str, str]:
    """Return versions of mfmd, python and the libraries that training and storage depend on."""
    return {**{name: metadata.version(name) for name in LIBRARIES}, "python": platform.python_version()}


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Return the hex SHA-256 of settings as JSON (`model_dump(mode="json")`, secrets masked), in any order of keys."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


@cache
def code_digest() -> str:
    """Return the hex SHA-256 of mfmd's source files: it distinguishes two states of the code with one version."""
    root, digest = Path(__file__).parents[1], hashlib.sha256()
    for room in ROOMS:
        for path in sorted((root / room).rglob("*.py")):
            digest.update(f"{path.relative_to(root).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return digest.hexdigest()
