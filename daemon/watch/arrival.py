"""A file of the drop folder on its way in: its facts, its stability, and how to read exactly that file.

The folder itself is the queue of waiting files; `StabilityQueue` holds only those that may be ingested next.
"""

import errno
import os
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO

from daemon.runtime.backoff import Backoff
from storage.buffer.catalog_records import FileFact, fact_of
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
    changed_ns: int
    """Change time of the inode (nanoseconds): also moves when permissions do."""
    renamed_into_place: bool = False
    """It was renamed into place and did not wait: what cannot be used of it gets its stability delay before it is
    refused."""
    found_at: float = field(default_factory=time.time, compare=False)
    """Unix time at which it was found (seconds)."""

    def matches(self, other: "Arrival") -> bool:
        """Return whether the other one is the same file, unchanged."""
        return (self.file, self.changed_ns) == (other.file, other.changed_ns)


class FileChanged(Exception):
    """The file is not what it was a moment ago: wait until it stands still again."""


def lstat_of(path: Path) -> os.stat_result | None:
    """Return the status of what has this name, a link itself; None when nothing has it. Raises OSError if unknown."""
    try:
        return path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return None


def find_arrival(root: Path, relative: str) -> Arrival | None:
    """Return the file `relative` as it is now; None when it is missing or is neither a file nor a link to one.

    A link into the folder counts as its target. One that points elsewhere or nowhere is described itself, to be refused
    when it is read.
    """
    path = root / relative
    status = lstat_of(path)
    if status is not None and stat.S_ISLNK(status.st_mode) and _inside(root, path):
        status = path.stat()
    if status is None:
        return None
    if not (stat.S_ISREG(status.st_mode) or stat.S_ISLNK(status.st_mode)):
        return None
    return Arrival(fact_of(relative, status), path, status.st_ctime_ns)


def read_arrival(root: Path, arrival: Arrival, max_bytes: int) -> bytes:
    """Return the content, if the file has not changed.

    Raises RefusedImage (empty, too_many_bytes, unreadable, outside_folder), FileChanged, or OSError for a fault that
    may be temporary.
    """
    _check_place(root, arrival)
    if arrival.file.size > max_bytes:
        raise RefusedImage("too_many_bytes", f"{arrival.file.size} bytes; watch.max_file_bytes is {max_bytes}")
    with _refusing(), _open(arrival.path) as file:
        data = file.read(arrival.file.size + 1) or b""
    check_still(root, arrival)
    if len(data) != arrival.file.size:
        raise FileChanged(f"{arrival.path}: changed while it was read")
    return data


def open_arrival(root: Path, arrival: Arrival) -> BinaryIO:
    """Open the file to read it in pieces; call `check_still` meanwhile. Raises like `read_arrival`."""
    _check_place(root, arrival)
    with _refusing():
        return _open(arrival.path)


def _check_place(root: Path, arrival: Arrival) -> None:
    """Raise RefusedImage (outside_folder, empty)."""
    real = os.path.realpath(root)
    if not _inside(root, arrival.path):
        if os.path.realpath(root) != real:
            raise FileChanged(f"{root}: turned to another folder meanwhile")
        target = os.path.realpath(arrival.path)
        raise RefusedImage("outside_folder", f"a link to {target}, which is not a file in the drop folder; copy it in")
    if arrival.file.size == 0:
        raise RefusedImage("empty", "empty (0 bytes)")


@contextmanager
def _refusing() -> Iterator[None]:
    """Translate errors of opening and reading a file: missing, not permitted, or possibly temporary."""
    try:
        yield
    except FileNotFoundError as error:
        raise FileChanged(str(error)) from error
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EPERM):
            raise RefusedImage("unreadable", "no permission to read it; chmod it, or run mfmd as its owner") from error
        raise


def check_still(root: Path, arrival: Arrival) -> None:
    """Raise FileChanged when the file has changed."""
    now = find_arrival(root, arrival.path.relative_to(root).as_posix())
    if now is None or not now.matches(arrival):
        raise FileChanged(f"{arrival.path}: changed while it was read")


def _open(path: Path) -> BinaryIO:
    """Open without waiting: a file that became a FIFO gives no data instead of blocking."""
    return open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb")  # noqa: PTH123 - a descriptor


def _inside(root: Path, path: Path) -> bool:
    """Return whether it is in the folder, also where a folder on the way became a link; a link: to a regular file."""
    target = Path(os.path.realpath(path))
    return target.is_relative_to(os.path.realpath(root)) and (target.is_file() or not path.is_symlink())


@dataclass(frozen=True, slots=True)
class _Waiting:
    arrival: Arrival | None
    """The file as it was seen; None after an error: it is looked at when it is due."""
    due: float
    failures: int


class StabilityQueue:
    """Candidates by name, the longest due first. Times are monotonic seconds."""

    def __init__(self, delay: float, capacity: int = CAPACITY) -> None:
        self.delay = delay
        """How long a file must be stable (seconds); may be changed at any time."""
        self._capacity = capacity
        self._waiting: dict[str, _Waiting] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def __contains__(self, name: str) -> bool:
        return name in self._waiting

    @property
    def full(self) -> bool:
        """Whether it is full."""
        return len(self) >= self._capacity

    def note(self, name: str, arrival: Arrival, now: float) -> None:
        """Note the file as seen: its delay begins, unless it was seen unchanged before."""
        known = self._waiting.get(name)
        if known is None or known.arrival is None or not known.arrival.matches(arrival):
            self._waiting[name] = _Waiting(arrival, now + self.delay, known.failures if known else 0)

    def note_renamed(self, name: str, arrival: Arrival, now: float) -> None:
        """Note that the file was renamed into place: it may be ingested now."""
        self._waiting[name] = _Waiting(replace(arrival, renamed_into_place=True), now, 0)

    def postpone(self, name: str, failures: int, now: float) -> None:
        """Retry after a growing delay, because reading failed for the `failures`-th time in a row."""
        self._waiting[name] = _Waiting(None, now + RETRIES.delay(failures), failures)

    def take(self, see: Callable[[str], Arrival | None], now: float) -> Iterator[tuple[str, Arrival, int]]:
        """Remove and return those that were stable for the delay or renamed: name, file, failures so far.

        `see` returns the file as it is now. A changed one waits again, a missing one is dropped.
        """
        due = [item for item in self._waiting.items() if item[1].due <= now]
        for name, waiting in sorted(due, key=lambda item: item[1].due):
            del self._waiting[name]
            arrival, before = see(name), waiting.arrival
            if arrival is not None and before is not None and arrival.matches(before):
                yield name, replace(arrival, renamed_into_place=before.renamed_into_place), waiting.failures
            elif arrival is not None:
                self._waiting[name] = _Waiting(arrival, now + self.delay, waiting.failures)

    def next_due(self, now: float) -> float | None:
        """Return the seconds until the next one may be ingested; None when nothing waits."""
        first = min((item.due for item in self._waiting.values()), default=None)
        return None if first is None else max(0.0, first - now)

    def oldest(self) -> float | None:
        """Return the modification time of the oldest candidate (Unix, seconds)."""
        seen = (item.arrival.file.mtime_ns / 1e9 for item in self._waiting.values() if item.arrival is not None)
        return min(seen, default=None)

    def clear(self) -> None:
        """Remove all, because the folder is missing."""
        self._waiting.clear()
