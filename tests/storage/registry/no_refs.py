"""What may lie where a ref belongs and is none."""

import os
import socket
from collections.abc import Callable
from pathlib import Path

HUGE = 1 << 30


def _huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(HUGE)


def _socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        with socket.socket(socket.AF_UNIX) as unix:
            unix.bind(f"/proc/self/fd/{folder}/{path.name}")  # the address of a socket is at most 107 bytes
    finally:
        os.close(folder)


NO_REFS: dict[str, Callable[[Path], None]] = {
    "empty": lambda path: path.write_bytes(b"") and None,
    "folder": lambda path: path.mkdir(),
    "full folder": lambda path: (path / "deeper").mkdir(parents=True),
    "link to nothing": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "pipe": lambda path: os.mkfifo(path),
    "socket": _socket,
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "huge": _huge,
}
"""By name: makes one at a path where nothing is."""
