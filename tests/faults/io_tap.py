"""Every call by which this process changes files under a folder, seen before and after it happens; it may be refused.

Python's own calls are wrapped where `os`, `pathlib`, `shutil`, `io` and zarr look them up; SQLite's in `sqlite_tap`.
Nothing is replaced: an observer that does not raise lets the real call happen.
"""

import io
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Protocol

import pytest

from tests.faults import sqlite_tap


class Observer(Protocol):
    """Told of `open`, `write`, `truncate`, `fsync`, `rename`, `unlink`, `mkdir` and `rmdir`."""

    def before(self, call: str, path: Path, target: Path | None) -> None:
        """It is about to happen to `path` (a rename: to `target`). An OSError from here is the call's answer."""

    def after(self, call: str, path: Path, target: Path | None) -> None:
        """It has happened."""


@contextmanager
def tapped(root: Path, observer: Observer) -> Iterator[None]:
    """Let `observer` see what happens under `root`, in all threads of this process."""
    tap = _Tap(Path(os.path.realpath(root)), observer)
    with pytest.MonkeyPatch.context() as patch, sqlite_tap.tapped(tap.around, tap.holds):
        tap.install(patch)
        yield


class _Tap:
    def __init__(self, root: Path, observer: Observer) -> None:
        self._root, self._observer = str(root), observer
        self._one_call, self._busy = threading.RLock(), False

    def install(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("mkdir", "rmdir", "unlink", "remove", "ftruncate", "truncate", "fsync", "fdatasync"):
            call = {"remove": "unlink", "fdatasync": "fsync"}.get(
                name, name.removeprefix("f") if "trunc" in name else name
            )
            patch.setattr(os, name, self._wrapped(call, getattr(os, name)))
        for name in ("rename", "replace", "link"):
            patch.setattr(os, name, self._moving("rename" if name != "link" else "link", getattr(os, name)))
        patch.setattr(os, "open", self._opening(os.open))
        patch.setattr(os, "pwrite", self._wrapped("write", os.pwrite))
        patch.setattr(io, "open", self._file_opening(io.open))

    def holds(self, path: str) -> bool:
        """Whether it lies under the folder."""
        return path == self._root or path.startswith(self._root + "/")

    @contextmanager
    def around(self, call: str, path: str, target: str | None = None) -> Iterator[None]:
        """The observer's two looks at one call; one call at a time, and none that the observer makes itself."""
        places = Path(path), Path(target) if target is not None else None
        with self._one_call:
            if self._busy:
                yield
                return
            with self._looking():
                self._observer.before(call, *places)
            yield
            with self._looking():
                self._observer.after(call, *places)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        self._busy = True
        try:
            yield
        finally:
            self._busy = False

    def _wrapped(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(what: Any, *arguments: Any, dir_fd: int | None = None, **more: Any) -> Any:
            path = self._path(what, dir_fd)
            more |= {} if dir_fd is None else {"dir_fd": dir_fd}
            if not self.holds(path):
                return real(what, *arguments, **more)
            with self.around(call, path):
                return real(what, *arguments, **more)

        return wrapper

    def _moving(self, call: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(source: Any, target: Any, **more: Any) -> Any:
            paths = self._path(source, None), self._path(target, None)
            if not any(map(self.holds, paths)):
                return real(source, target, **more)
            with self.around(call, *paths):
                return real(source, target, **more)

        return wrapper

    def _opening(self, real: Callable[..., int]) -> Callable[..., int]:
        def wrapper(what: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            path = self._path(what, dir_fd)
            if not self.holds(path):
                return real(what, flags, mode, dir_fd=dir_fd)
            with self.around("open", path):
                return real(what, flags, mode, dir_fd=dir_fd)

        return wrapper

    def _file_opening(self, real: Callable[..., IO[Any]]) -> Callable[..., IO[Any]]:
        def wrapper(
            file: Any, mode: str = "r", buffering: int = -1, encoding: Any = None, *rest: Any, **more: Any
        ) -> Any:
            path = self._path(file, None)
            if not self.holds(path):
                return real(file, mode, buffering, encoding, *rest, **more)
            raw = _TappedFile(self, path, file, mode.replace("b", "").replace("t", ""))
            if "b" in mode and buffering == 0:
                return raw
            kind = io.BufferedRandom if "+" in mode else io.BufferedReader if "r" in mode else io.BufferedWriter
            buffered: Any = kind(raw)
            return buffered if "b" in mode else io.TextIOWrapper(buffered, encoding or "utf-8", *rest, **more)

        return wrapper

    @staticmethod
    def _path(what: Any, dir_fd: int | None) -> str:
        if isinstance(what, int):
            return str(Path(f"/proc/self/fd/{what}").readlink())
        # In strings: this is asked for every file that anybody opens, and with paths it was a fifth of a test.
        path = os.fsdecode(what).rstrip("/")
        if dir_fd is not None and not path.startswith("/"):
            path = f"/proc/self/fd/{dir_fd}/{path}"
        parent, slash, name = path.rpartition("/")
        return f"{os.path.realpath(parent or slash or '.').rstrip('/')}/{name}"


class _TappedFile(io.FileIO):
    """A file whose writes are seen; one that is refused has written half of it, as on a disk that fills up."""

    def __init__(self, tap: _Tap, path: str, file: Any, mode: str) -> None:
        self._tap, self._path = tap, path
        super().__init__(
            file, mode, opener=None if isinstance(file, int) else lambda name, flags: os.open(name, flags, 0o666)
        )

    def write(self, data: Any) -> int:
        try:
            with self._tap.around("write", self._path):
                return super().write(data) or 0
        except OSError:
            super().write(bytes(data)[: len(data) // 2])
            raise
