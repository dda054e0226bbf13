"""The file calls of SQLite, which are made in C: wrapped in the table of system calls that its VFS has for tests.

`sqlite3_vfs.xSetSystemCall` replaces open, write, truncate and unlink; fsync is no entry of that table, so the VFS's
`xOpen` is wrapped and every file that it opens gets a copy of its methods whose `xSync` is ours. All in the library
that `_sqlite3` itself has loaded, by ctypes; installed once a process, without effect unless `tapped`.
"""

import _sqlite3
import ctypes
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_size_t, c_ssize_t, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

OK, IOERR_FSYNC, IOERR_DIR_FSYNC = 0, 10 | (4 << 8), 10 | (5 << 8)
SYNC_METHOD = 5
"""Index of `xSync` among the methods of a file."""
METHODS = 19
"""Pointers in `sqlite3_io_methods`, with its version number in the place of the first."""

Around = Callable[[str, str], AbstractContextManager[None]]
_around: Around | None = None
_holds: Callable[[str], bool] = lambda path: False  # noqa: E731 - replaced by `tapped`


class _Vfs(ctypes.Structure):
    pass


_OPEN_FILE = CFUNCTYPE(c_int, POINTER(_Vfs), c_void_p, c_void_p, c_int, c_void_p)
_SET = CFUNCTYPE(c_int, POINTER(_Vfs), c_char_p, c_void_p)
_GET = CFUNCTYPE(c_void_p, POINTER(_Vfs), c_char_p)
_Vfs._fields_ = [
    ("version", c_int),
    ("file_size", c_int),
    ("longest_path", c_int),
    ("next", c_void_p),
    ("name", c_char_p),
    ("data", c_void_p),
    ("open", c_void_p),
    *[(f"method_{number}", c_void_p) for number in range(12)],
    ("set_system_call", _SET),
    ("get_system_call", _GET),
    ("next_system_call", c_void_p),
]
_SYNC = CFUNCTYPE(c_int, c_void_p, c_int)
CALLS: dict[bytes, tuple[str, Any]] = {
    b"open": ("open", CFUNCTYPE(c_int, c_char_p, c_int, c_int, use_errno=True)),
    b"pwrite": ("write", CFUNCTYPE(c_ssize_t, c_int, c_void_p, c_size_t, c_int64, use_errno=True)),
    b"pwrite64": ("write", CFUNCTYPE(c_ssize_t, c_int, c_void_p, c_size_t, c_int64, use_errno=True)),
    b"write": ("write", CFUNCTYPE(c_ssize_t, c_int, c_void_p, c_size_t, use_errno=True)),
    b"ftruncate": ("truncate", CFUNCTYPE(c_int, c_int, c_int64, use_errno=True)),
    b"unlink": ("unlink", CFUNCTYPE(c_int, c_char_p, use_errno=True)),
}
"""SQLite's name of a call -> ours, and its C type."""
_kept: list[Any] = []
"""What C points at must not be collected."""


@contextmanager
def tapped(around: Around, holds: Callable[[str], bool]) -> Iterator[None]:
    """Let `around(call, path)` stand around each call on a file for which `holds(path)`; its OSError is the answer."""
    global _around, _holds
    _install()
    _around, _holds = around, holds
    try:
        yield
    finally:
        _around = None


@cache
def _install() -> None:
    library = ctypes.CDLL(_sqlite3.__file__)
    library.sqlite3_vfs_find.restype, library.sqlite3_vfs_find.argtypes = POINTER(_Vfs), [c_char_p]
    vfs = library.sqlite3_vfs_find(None)
    for name, (call, kind) in CALLS.items():
        address = vfs.contents.get_system_call(vfs, name)
        if address:
            _set_call(vfs, name, call, kind, kind(address))
    _wrap_open(vfs)


def _set_call(vfs: Any, name: bytes, call: str, kind: Any, real: Any) -> None:
    def wrapper(first: Any, *rest: Any) -> int:
        path = str(Path(f"/proc/self/fd/{first}").readlink()) if isinstance(first, int) else os.fsdecode(first)
        if _around is None or not _holds(path):
            return _called(real, first, *rest)
        try:
            with _around(call, path):
                answer = _called(real, first, *rest)
                if answer < 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
                return answer
        except OSError as error:
            ctypes.set_errno(error.errno or 0)
            return -1

    _kept.append(kind(wrapper))
    assert vfs.contents.set_system_call(vfs, name, ctypes.cast(_kept[-1], c_void_p)) == OK


def _called(real: Any, *arguments: Any) -> int:
    return int(real(*arguments))


def _wrap_open(vfs: Any) -> None:
    real, copies, names, new = _OPEN_FILE(vfs.contents.open), dict[int, Any](), dict[int, str](), set[int]()

    def wrapper(this: Any, name: int | None, file: int, flags: int, out: Any) -> int:
        # an address, not bytes: SQLite keeps it for as long as the file is open, to name the log's index by it
        code = int(real(this, name, file, flags, out))
        if code == OK and name is not None:
            place = ctypes.cast(file, POINTER(c_void_p))
            names[file] = os.fsdecode(ctypes.string_at(name))
            (new.add if names[file].endswith(("-wal", "-journal")) else new.discard)(file)
            if place[0] not in copies and place[0] not in (ctypes.addressof(copy) for copy in copies.values()):
                copies[place[0]] = _with_sync(place[0], names, new)
            place[0] = ctypes.addressof(copies[place[0]])
        return code

    _kept.append(_OPEN_FILE(wrapper))
    vfs.contents.open = ctypes.cast(_kept[-1], c_void_p)


def _with_sync(methods: int, names: dict[int, str], new: set[int]) -> Any:
    """A copy of a file's methods with our `xSync`.

    The first fsync of a log or journal that was opened is also one of its folder (`UNIXFILE_DIRSYNC`).
    """
    copy = (c_void_p * METHODS)()
    ctypes.memmove(copy, methods, ctypes.sizeof(copy))
    real = _SYNC(copy[SYNC_METHOD])

    def sync(file: int, flags: int) -> int:
        path = names[file]
        if _around is None or not _holds(path):
            return int(real(file, flags))
        try:
            with _around("fsync", path):
                code = int(real(file, flags))
                if code != OK:
                    raise OSError(0, "SQLite's own fsync failed")
        except OSError:
            return IOERR_FSYNC
        if file not in new:
            return OK
        new.discard(file)
        return _folder_synced(path)

    _kept.append(_SYNC(sync))
    copy[SYNC_METHOD] = ctypes.cast(_kept[-1], c_void_p)
    return copy


def _folder_synced(path: str) -> int:
    try:
        with _around("fsync", str(Path(path).parent)) if _around is not None else nullcontext():
            return OK
    except OSError:
        return IOERR_DIR_FSYNC
