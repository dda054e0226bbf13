"""A file of the drop folder on its way in: its facts, its stability, and how to read exactly that file.

The folder itself is the queue of waiting files; `StabilityQueue` holds only those that may be ingested next.
"""

import errno
import os
import stat
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from daemon.runtime.backoff import Backoff
from storage.buffer.catalog_records import FileFact
from storage.errors import RefusedImage

CAPACITY = 4096
"""Candidates held at once; a later rescan finds the others."""
RETRIES = Backoff(base=1.0, cap=60.0)
"""Delays after temporary errors of one file."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """One stable file."""

    file: FileFact
    """Name, size and mtime as the catalog records them."""
    path: Path
    """Path to read it from."""
    changed_ns: int
    """Change time of the inode (nanoseconds): also moves when permissions do."""
    renamed_into_place: bool = False
    """It was renamed into place and did not wait: what cannot be used of it gets its stability delay before it is
    refused."""


class FileChanged(Exception):
    """The file is not what it was a moment ago: wait until it stands still again."""


def look_at(root: Path, relative: str) -> Arrival | None:
    """Return the file `relative` as it is now; None when it is missing or is neither a file nor a link to one.

    A link into the folder counts as its target. One that points elsewhere or nowhere is described itself, to be refused
    when it is read.
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
    """Return the content, if the file has not changed.

    Raises RefusedImage (empty, too_many_bytes, unreadable, outside_folder), FileChanged, or OSError for a fault that
    may be temporary.
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


def open_arrival(root: Path, arrival: Arrival) -> BinaryIO:
    """Open the file to read it in pieces; call `check_still` meanwhile. Raises like `read_arrival`."""
    _check_place(root, arrival)
    with _refusing():
        return _open(arrival.path)


def check_still(root: Path, arrival: Arrival) -> None:
    """Raise FileChanged when the file has changed."""
    now = look_at(root, arrival.path.relative_to(root).as_posix())
    if now is None or now.file != arrival.file:
        raise FileChanged(f"{arrival.path}: changed while it was read")


def _check_place(root: Path, arrival: Arrival) -> None:
    """Raise RefusedImage (outside_folder, empty)."""
    target = Path(os.path.realpath(arrival.path))  # also where a folder on the way became a link
    if not target.is_relative_to(os.path.realpath(root)) or (arrival.path.is_symlink() and not target.is_file()):
        raise RefusedImage("outside_folder", f"a link to {target}, which is not a file in the drop folder; copy it in")
    if arrival.file.size == 0:
        raise RefusedImage("empty", "empty (0 bytes)")


@contextmanager
def _refusing() -> Iterator[None]:
    """Translate the system's errors for a file: missing, not permitted, or possibly temporary."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileChanged(str(error)) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise RefusedImage("unreadable", "no permission to read it; chmod it, or run mfmd as its owner") from error
        raise


def _read(path: Path, limit: int) -> bytes:
    """Return at most `limit` bytes."""
    with _open(path) as file:
        return file.read(limit) or b""


def _open(path: Path) -> BinaryIO:
    """Open without waiting: a file that became a FIFO gives no data instead of blocking."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123 - a descriptor


def _inside(root: Path, path: Path) -> bool:
    """Return whether a link ends at a regular file inside the folder, and not at a directory."""
    target = Path(os.path.realpath(path))
    return target.is_relative_to(os.path.realpath(root)) and target.is_file()


def _storable(relative: str) -> str:
    """Return a name that can be written as UTF-8: other bytes are escaped in the catalog."""
    return os.fsencode(relative).decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class _Waiting:
    arrival: Arrival
    due: float
    failures: int


class StabilityQueue:
    """Candidates by name, the longest due first. Times are monotonic seconds."""

    def __init__(self, delay: float, capacity: int = CAPACITY) -> None:
        self.delay = delay
        """How long a file must be stable (seconds); may be changed at any time."""
        self._capacity = capacity
        self._waiting: OrderedDict[str, _Waiting] = OrderedDict()
        self._renamed: OrderedDict[str, _Waiting] = OrderedDict()
        self._later: dict[str, tuple[float, int]] = {}

    def __len__(self) -> int:
        return len(self._waiting) + len(self._renamed) + len(self._later)

    def __contains__(self, name: str) -> bool:
        return name in self._waiting or name in self._renamed or name in self._later

    @property
    def full(self) -> bool:
        """Whether it is full."""
        return len(self) >= self._capacity

    def note(self, name: str, arrival: Arrival, now: float, failures: int = 0) -> None:
        """Note the file as seen: its delay begins, unless it was seen unchanged before."""
        known = self._renamed.get(name) or self._waiting.get(name)
        if known is not None and known.arrival.file == arrival.file:
            return
        self._forget(name)
        self._waiting[name] = _Waiting(arrival, now + self.delay, failures if known is None else known.failures)

    def note_renamed(self, name: str, arrival: Arrival, now: float) -> None:
        """Note that the file was renamed into place: it may be ingested now."""
        self._forget(name)
        self._renamed[name] = _Waiting(replace(arrival, renamed_into_place=True), now, 0)

    def postpone(self, name: str, failures: int, now: float) -> None:
        """Retry after a growing delay, because reading failed for the `failures`-th time in a row."""
        self._forget(name)
        self._later[name] = (now + RETRIES.delay(failures), failures)

    def take(self, see: Callable[[str], Arrival | None], now: float) -> Iterator[tuple[str, Arrival, int]]:
        """Remove and return those that were stable for the delay or renamed: name, file, failures so far.

        `see` returns the file as it is now. A changed one waits again, a missing one is dropped.
        """
        self._return_postponed(see, now)
        while (head := self._head()) is not None and head[1].due <= now:
            name, waiting = head
            self._forget(name)
            arrival = see(name)
            if arrival is None:
                continue
            if arrival.file == waiting.arrival.file:
                yield name, replace(arrival, renamed_into_place=waiting.arrival.renamed_into_place), waiting.failures
            else:
                self.note(name, arrival, now, waiting.failures)

    def next_due(self, now: float) -> float | None:
        """Return the seconds until the next one may be ingested; None when nothing waits."""
        head = self._head()
        times = [due for due, _ in self._later.values()]
        if head is not None:
            times.append(head[1].due)
        return max(0.0, min(times) - now) if times else None

    def oldest(self) -> float | None:
        """Return the modification time of the oldest candidate (Unix, seconds)."""
        times = (item.arrival.file.mtime_ns / 1e9 for part in (self._waiting, self._renamed) for item in part.values())
        return min(times, default=None)

    def clear(self) -> None:
        """Remove all, because the folder is missing."""
        self._waiting.clear()
        self._renamed.clear()
        self._later.clear()

    def _head(self) -> tuple[str, _Waiting] | None:
        """Return what is due first; each part is in the order of its due times, because each has one delay."""
        heads = [next(iter(part.items())) for part in (self._waiting, self._renamed) if part]
        return min(heads, key=lambda item: item[1].due, default=None)

    def _forget(self, name: str) -> None:
        self._waiting.pop(name, None)
        self._renamed.pop(name, None)
        self._later.pop(name, None)

    def _return_postponed(self, see: Callable[[str], Arrival | None], now: float) -> None:
        for name, (due, failures) in list(self._later.items()):
            if now >= due:
                del self._later[name]
                arrival = see(name)
                if arrival is not None:
                    self.note(name, arrival, now, failures)
