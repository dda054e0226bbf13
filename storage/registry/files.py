"""Names that end in a number, and small files that may have been replaced by something else."""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

BLOCK_BYTES = 64 * 1024
NO_FILE = (errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENXIO, errno.ENODEV)
"""Errors of the system or of `read_small` for something that is no small file; a retry does not help."""
FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
"""Opening neither waits for the writer of a FIFO nor makes a terminal this daemon's own. A socket does not open: ENXIO.
"""


def read_small(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes; follows links, never waits for a FIFO.

    Raises OSError: an error of opening, EISDIR or EINVAL for what is no regular file, EFBIG for a larger one.
    """
    handle = os.open(path, FLAGS)
    try:
        mode = os.fstat(handle).st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
        if not stat.S_ISREG(mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        return _read(handle, path, most)
    finally:
        os.close(handle)


def _read(handle: int, path: Path, most: int) -> bytes:
    data = bytearray()
    while block := os.read(handle, BLOCK_BYTES):
        data += block
        if len(data) > most:
            raise OSError(errno.EFBIG, f"More than {most} bytes", str(path))
    return bytes(data)


def numbers(folder: Path, prefix: str = "") -> list[int]:
    """Return the numbers of files and folders in `folder` named `prefix` and a number, ascending."""
    names = (path.name.removesuffix(".json").removeprefix(prefix) for path in folder.glob(f"{prefix}[0-9]*"))
    return sorted(int(name) for name in names if name.isdigit())


def listed(found: Iterable[int]) -> str:
    """Format numbers for a message."""
    return ", ".join(map(str, found)) or "none"
