"""A file of the drop folder on its way in: what it is when seen, when it has stood still, how to read exactly that.

The folder itself is the queue of the files that wait; `StabilityQueue` holds only those that may be taken next.
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
"""Candidates held at once; more are left in the folder for a later rescan."""
RETRIES = Backoff(base=1.0, cap=60.0)
"""Delays after passing errors of one file."""


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


@dataclass(frozen=True, slots=True)
class _Waiting:
    arrival: Arrival
    due: float
    failures: int


class StabilityQueue:
    """Candidates by name, those that are due longest first. Times are monotonic seconds."""

    def __init__(self, delay: float, capacity: int = CAPACITY) -> None:
        self.delay = delay
        """How long a file must stand still (seconds); may be changed at any time."""
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
        """Whether nothing more fits."""
        return len(self) >= self._capacity

    def note(self, name: str, arrival: Arrival, now: float, failures: int = 0) -> None:
        """The file was seen like this: its delay begins, unless it was seen like this before."""
        known = self._renamed.get(name) or self._waiting.get(name)
        if known is not None and known.arrival.file == arrival.file:
            return
        self._forget(name)
        self._waiting[name] = _Waiting(arrival, now + self.delay, failures if known is None else known.failures)

    def note_renamed(self, name: str, arrival: Arrival, now: float) -> None:
        """The file was renamed into place: it may be taken now."""
        self._forget(name)
        self._renamed[name] = _Waiting(replace(arrival, renamed_into_place=True), now, 0)

    def postpone(self, name: str, failures: int, now: float) -> None:
        """Reading it failed for the `failures`-th time in a row: look again after a growing delay."""
        self._forget(name)
        self._later[name] = (now + RETRIES.delay(failures), failures)

    def take(self, see: Callable[[str], Arrival | None], now: float) -> Iterator[tuple[str, Arrival, int]]:
        """Remove and give those that did not change for the delay or were renamed: name, file, failures so far.

        `see` returns the file as it is now; one that changed waits again, one that is gone is dropped.
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
        """Seconds until the next one may be taken; none when nothing waits."""
        head = self._head()
        times = [due for due, _ in self._later.values()]
        if head is not None:
            times.append(head[1].due)
        return max(0.0, min(times) - now) if times else None

    def oldest(self) -> float | None:
        """Modification time of the oldest candidate (Unix, seconds)."""
        times = (item.arrival.file.mtime_ns / 1e9 for part in (self._waiting, self._renamed) for item in part.values())
        return min(times, default=None)

    def clear(self) -> None:
        """Forget all: the folder is gone."""
        self._waiting.clear()
        self._renamed.clear()
        self._later.clear()

    def _head(self) -> tuple[str, _Waiting] | None:
        """What is due first; each part is in the order of its due times, for each has one delay."""
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
