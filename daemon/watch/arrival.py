"""A file of the drop folder on its way in: what it was when looked at, and how to read exactly that."""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from storage.buffer.catalog_records import FileFact
from storage.errors import RefusedImage


@dataclass(frozen=True, slots=True)
class Arrival:
    """One file that stood still."""

    file: FileFact
    """Name, size and mtime as the catalog records them."""
    path: Path
    """Where to read it."""
    changed_ns: int
    """Change time of the inode (nanoseconds): also moves when permissions do."""
    renamed_into_place: bool = False
    """It was renamed into place and did not wait: what cannot be used of it gets its stability delay before it is
    refused."""


class FileChanged(Exception):
    """The file is not what it was a moment ago: wait until it stands still again."""


def look_at(root: Path, relative: str) -> Arrival | None:
    """The file `relative` as it is now; none when it is gone or is neither a file nor a link to one.

    A link into the folder counts as what it points at. One that points elsewhere or nowhere is described itself, to
    be refused when it is read.
    """
    path = root / relative
    try:
        status = path.lstat()
        if stat.S_ISLNK(status.st_mode) and _inside(root, path):
            status = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None
    fact = FileFact(_storable(relative), status.st_size, status.st_mtime_ns)
    return Arrival(fact, path, status.st_ctime_ns)


def read_arrival(root: Path, arrival: Arrival, max_bytes: int) -> bytes:
    """The content, if the file is still what it was.

    Raises RefusedImage (empty, too_many_bytes, unreadable, outside_folder), FileChanged, or OSError for a fault that
    may pass.
    """
    _check_place(root, arrival)
    if arrival.file.size > max_bytes:
        raise RefusedImage("too_many_bytes", f"{arrival.file.size} bytes; watch.max_file_bytes is {max_bytes}")
    with _refusing():
        data = _read(arrival.path, arrival.file.size + 1)
    check_still(root, arrival)
    if len(data) != arrival.file.size:
        raise FileChanged(f"{arrival.path}: changed while it was read")
    return data


def read_head(root: Path, arrival: Arrival, count: int) -> bytes:
    """The first `count` bytes, or as many as there are. Raises what `read_arrival` raises, but for its size."""
    _check_place(root, arrival)
    with _refusing():
        return _read(arrival.path, count)


def open_arrival(root: Path, arrival: Arrival) -> BinaryIO:
    """The file, open for reading piece by piece; ask `check_still` meanwhile. Raises what `read_head` raises."""
    _check_place(root, arrival)
    with _refusing():
        return _open(arrival.path)


def check_still(root: Path, arrival: Arrival) -> None:
    """Raises FileChanged when the file is not what it was."""
    now = look_at(root, arrival.path.relative_to(root).as_posix())
    if now is None or now.file != arrival.file:
        raise FileChanged(f"{arrival.path}: changed while it was read")


def _check_place(root: Path, arrival: Arrival) -> None:
    """Raises RefusedImage (outside_folder, empty)."""
    target = Path(os.path.realpath(arrival.path))  # also where a folder on the way became a link
    if not target.is_relative_to(os.path.realpath(root)) or (arrival.path.is_symlink() and not target.is_file()):
        raise RefusedImage("outside_folder", f"a link to {target}, which is not a file in the drop folder; copy it in")
    if arrival.file.size == 0:
        raise RefusedImage("empty", "empty (0 bytes)")


@contextmanager
def _refusing() -> Iterator[None]:
    """What the system's errors mean for a file: gone, not permitted, or a fault that may pass."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileChanged(str(error)) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise RefusedImage("unreadable", "no permission to read it; chmod it, or run mfmd as its owner") from error
        raise


def _read(path: Path, limit: int) -> bytes:
    """At most `limit` bytes."""
    with _open(path) as file:
        return file.read(limit) or b""


def _open(path: Path) -> BinaryIO:
    """Never waits: what became a pipe meanwhile gives no data instead of blocking."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123 - a descriptor


def _inside(root: Path, path: Path) -> bool:
    """Whether a link ends at a regular file inside the folder, and not at a directory."""
    target = Path(os.path.realpath(path))
    return target.is_relative_to(os.path.realpath(root)) and target.is_file()


def _storable(relative: str) -> str:
    """A name that can be written as UTF-8: bytes that are none stand escaped in the catalog."""
    return os.fsencode(relative).decode("utf-8", "backslashreplace")
