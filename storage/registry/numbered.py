"""Names that end in a number: versions, pins, kept manifests."""

from collections.abc import Iterable
from pathlib import Path


def numbers(folder: Path, prefix: str = "") -> list[int]:
    """Numbers of the files and folders in `folder` that are called `prefix` and a number, ascending."""
    names = (path.name.removesuffix(".json").removeprefix(prefix) for path in folder.glob(f"{prefix}[0-9]*"))
    return sorted(int(name) for name in names if name.isdigit())


def listed(found: Iterable[int]) -> str:
    """Numbers for a message."""
    return ", ".join(map(str, found)) or "none"
