"""What a disk holds when the power goes: a model of one directory tree that knows what was fsynced and what was not.

Modelled, after POSIX: the content of a file is durable as it was at its last successful fsync; a name (made, moved or
removed) is durable once its directory was fsynced after it. SQLite's own writes and fsyncs count like all others.
A cut may keep less or more than that, so three disks are made of each moment:

- `lost`: nothing that was not fsynced is there: files are empty or old, names are missing, removed names are back;
- `named`: every name is as the process saw it, but content only as it was fsynced (a rename that overtook its data);
- `torn`: as `named`, and of content that was not fsynced the first half arrived.

Not modelled: other subsets and orders of what was not fsynced, a sector that is half written, a disk that lies about
fsync, and permissions, times and owners.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import RLock
from typing import Literal

Disk = Literal["lost", "named", "torn"]
NEVER_DURABLE = ("-shm",)
"""Ends of names that are only there while processes live: SQLite makes the index of its log anew."""


@dataclass(frozen=True)
class Moment:
    """One moment between two calls."""

    after: str
    """The call it followed."""
    facts: object
    """What was acknowledged by then."""
    disks: dict[Disk, dict[str, bytes | None]]
    """Relative path -> content (none: a directory), for each disk."""


class PowerCut:
    """An observer of `io_tap.tapped` that keeps every moment at which a disk differs from the moment before."""

    def __init__(self, root: Path, facts: Callable[[], object]) -> None:
        self._root, self._facts, self._lock = Path(os.path.realpath(root)), facts, RLock()
        self._identity: dict[int, int] = {}
        self._next = 0
        self._content: dict[int, bytes] = {}
        self._names: dict[int, dict[str, int]] = {}
        self._folders: set[int] = set()
        self.moments: list[Moment] = []
        self._everything_is_durable()

    def before(self, call: str, path: Path, target: Path | None) -> None:
        """A file that is about to be made is another one than any whose inode it may get."""

    def after(self, call: str, path: Path, target: Path | None) -> None:
        """Learn what the call made durable."""
        with self._lock:
            if call == "unlink" or call == "rmdir":
                self._forget_unused()
            elif call in ("open", "mkdir"):
                self._see(path)
            elif call == "fsync" and path.is_dir():
                self._names[self._see(path)] = {item.name: self._see(item) for item in path.iterdir()}
            elif call == "fsync":
                self._content[self._see(path)] = path.read_bytes()
            self._keep(f"{call} {path.relative_to(self._root)}")

    def _everything_is_durable(self) -> None:
        for folder, _, files in os.walk(self._root):
            place = Path(folder)
            self._names[self._see(place)] = {item.name: self._see(item) for item in place.iterdir()}
            self._content |= {self._see(place / name): (place / name).read_bytes() for name in files}

    def _see(self, path: Path) -> int:
        """The identity of what lies there; a new one when it was not seen before."""
        try:
            status = path.stat()
        except FileNotFoundError:
            return -1
        if status.st_ino not in self._identity:
            self._next += 1
            self._identity[status.st_ino] = self._next
            if path.is_dir():
                self._folders.add(self._next)
        return self._identity[status.st_ino]

    def _forget_unused(self) -> None:
        """An inode that no name leads to may come back as another file."""
        used = {self._root.stat().st_ino, *(item.stat().st_ino for item in self._root.rglob("*"))}
        self._identity = {inode: identity for inode, identity in self._identity.items() if inode in used}

    def _keep(self, after: str) -> None:
        self._forget_unused()
        named = self._now()
        disks: dict[Disk, dict[str, bytes | None]] = {
            "lost": dict(self._durable(self._see(self._root), "")),
            "named": {name: self._kept(identity) for name, (identity, _) in named.items()},
            "torn": {name: self._torn(identity, path) for name, (identity, path) in named.items()},
        }
        if not self.moments or self.moments[-1].disks != disks:
            self.moments.append(Moment(after, self._facts(), disks))

    def _now(self) -> dict[str, tuple[int, Path]]:
        """Everything by relative path, as the process sees it."""
        found = sorted(path for path in self._root.rglob("*") if not path.name.endswith(NEVER_DURABLE))
        return {path.relative_to(self._root).as_posix(): (self._see(path), path) for path in found}

    def _kept(self, identity: int) -> bytes | None:
        return None if identity in self._folders else self._content.get(identity, b"")

    def _torn(self, identity: int, path: Path) -> bytes | None:
        durable = self._kept(identity)
        now = path.read_bytes() if durable is not None else b""
        if durable is None or now == durable:
            return durable
        half = (len(now) + 1) // 2
        return now[:half] + durable[half:]

    def _durable(self, folder: int, prefix: str) -> list[tuple[str, bytes | None]]:
        found: list[tuple[str, bytes | None]] = []
        for name, identity in sorted(self._names.get(folder, {}).items()):
            if name.endswith(NEVER_DURABLE):
                continue
            found.append((prefix + name, self._kept(identity)))
            if identity in self._folders:
                found += self._durable(identity, f"{prefix}{name}/")
        return found


def materialise(disk: dict[str, bytes | None], folder: Path) -> None:
    """Bring a disk into an empty folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in disk.items():
        if content is None:
            (folder / name).mkdir(exist_ok=True)
        else:
            (folder / name).write_bytes(content)
