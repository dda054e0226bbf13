"""Space that a full disk cannot take: a block beside a small file, and one behind the end of a log.

A write that finds no space goes into the file's spare, which has its block already, and the spare is renamed over the
file. The old content keeps its block and becomes the next spare, so moves without end need no space
(docs/explanation/decisions/0017-room-for-a-rollback.md). A file system that copies on write (Btrfs, ZFS) needs space
even so; then the write fails as it would without a spare.
"""

import ctypes
import errno
import os
import stat
from contextlib import suppress
from pathlib import Path

from storage.durable import publish_file, temporary_name, write_bytes
from storage.durable.record import Record

BLOCK = 4096
"""Size of a new spare (bytes): the block of nearly every file system, so the largest record for which space is kept."""
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_KEEP_SIZE = 1
"""FALLOC_FL_KEEP_SIZE of fallocate(2), which the `os` module lacks: the file does not seem longer."""


def keep_spare(path: Path) -> None:
    """Make the spare of a small file unless there is one; without space there is none."""
    spare = _spare(path)
    if not _holds(spare, BLOCK):
        with suppress(OSError):
            write_bytes(spare, bytes(BLOCK))


def keep_space_behind(path: Path) -> None:
    """Allocate a block behind the end of a file for the next lines; do nothing where that is impossible."""
    with suppress(OSError), path.open("rb+") as file:
        end = ctypes.c_int64(os.fstat(file.fileno()).st_size)
        ctypes.CDLL(None).fallocate(file.fileno(), _KEEP_SIZE, end, ctypes.c_int64(BLOCK))


def write_record(path: Path, record: Record) -> None:
    """Replace `path` by a record, wholly or not at all: on a full disk by its spare. Raises OSError (ENOSPC)."""
    data = record.model_dump_json(indent=2).encode() + b"\n"
    try:
        write_bytes(path, data)
    except OSError as error:
        if error.errno not in NO_SPACE or not _holds(_spare(path), len(data)):
            raise
        _write_into_spare(path, data)


def _write_into_spare(path: Path, data: bytes) -> None:
    spare, old = _spare(path), temporary_name(path)
    handle = os.open(spare, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.pwrite(handle, data, 0)
        os.ftruncate(handle, len(data))
    finally:
        os.close(handle)
    with suppress(OSError):  # nothing is there yet, or a file cannot have two names here: this spare was the last one
        os.link(path, old)
    publish_file(spare, path)
    with suppress(FileNotFoundError):
        old.replace(spare)


def _holds(spare: Path, size: int) -> bool:
    """Return whether a spare has blocks for `size` bytes, and no other name.

    After a power cut the file itself may be the other one, and would change while it is read.
    """
    try:
        found = spare.lstat()
    except FileNotFoundError:
        return False
    return stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_blocks * 512 >= size


def _spare(path: Path) -> Path:
    return path.with_name(f".{path.name}.spare")
