"""Names that end in a number, and small files that may have been replaced by something else."""

import errno
import os
import stat
from collections.abc import Iterable
from pathlib import Path

NO_FILE = (errno.EISDIR, errno.EINVAL, errno.EFBIG, errno.ELOOP, errno.ENXIO, errno.ENODEV)
"""Errors of the system or of `read_small` for something that is no small file; a retry does not help."""


def read_small(path: Path, most: int) -> bytes:
    """Return the content of a regular file of at most `most` bytes; follows links, never waits for a FIFO.

    Raises OSError: an error of opening, EISDIR or EINVAL for what is no regular file, EFBIG for a larger one.
    """
    with open(path, "rb", opener=_open) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise OSError(errno.EFBIG, f"More than {most} bytes", str(path))
    return data


def _open(path: str, flags: int) -> int:
    """Never wait for the writer of a FIFO, nor make a terminal this daemon's own. A socket raises ENXIO."""
    return os.open(path, flags | os.O_NONBLOCK | os.O_NOCTTY)


def numbers(folder: Path, prefix: str = "") -> list[int]:
    """Return the numbers of files and folders in `folder` named `prefix` and a number, ascending."""
    names = (path.name.removesuffix(".json").removeprefix(prefix) for path in folder.glob(f"{prefix}[0-9]*"))
    return sorted(int(name) for name in names if name.isdigit())


def listed(found: Iterable[int]) -> str:
    """Format numbers for a message."""
    return ", ".join(map(str, found)) or "none"
