"""What may lie where a ref belongs and is none."""

import os
from collections.abc import Callable
from pathlib import Path

HUGE = 1 << 30


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE)


NO_REFS: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "folder": lambda path: path.mkdir(),
    "full folder": lambda path: (path / "deeper").mkdir(parents=True),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "pipe": lambda path: os.mkfifo(path),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "huge": _huge,
}
"""By name: makes one at a path where nothing is."""
