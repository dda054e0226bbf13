"""Refs of the checkpoint registry: `serving`, `previous`, `pinned-000003`, one small JSON each, replaced as a whole.

A reader opens the file by its name at every poll and keeps nothing open. It never asks for a modification time: a
network mount caches attributes for seconds up to a minute, but opening a file asks the server.
"""

import errno
import os
import time
import unicodedata
from pathlib import Path

from pydantic import ValidationError

from storage import durable
from storage.durable import spares
from storage.durable.record import validated
from storage.errors import InvalidReason, StorageError
from storage.registry.files import NO_FILE, numbers, read_small
from storage.registry.manifest import Ref

PIN = "pinned-"
ROLLED_BACK = ("serving", "previous")
"""Refs that a rollback moves."""
STALE_READS = 5
"""Largest number of attempts to open a ref: on NFS a file that is replaced between open and read is stale."""
MOST_BYTES = 1 << 20
"""Largest size of a ref (bytes), with room to spare."""
REWRITE = "stop `mfmd run`, then `mfmd check --repair` rewrites it"
NO_REF = (*NO_FILE, errno.ENOENT, errno.ENOTDIR)
"""Errors of the system when something that is no ref, or a dangling link, is at the path."""
FORBIDDEN = (errno.EACCES, errno.EPERM)
LONGEST_REASON = 2000
"""Largest number of characters of a reason: a paragraph. Every list of versions reads the whole history."""
ALLOWED = frozenset("\t\n\r")
"""Control characters that a reason may hold; others would act on the terminal that shows the history."""


class Refs:
    """The folder of refs. Only the registry's writer writes, under its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """Return the file of a ref."""
        return self.folder / name

    def read(self, name: str) -> Ref | None:
        """Return what a ref names; None when it does not exist. Raises StorageError when it cannot be read."""
        path = self.path(name)
        try:
            data = _content(path)
            return validated(data, Ref, path) if data is not None else None
        except ValidationError as error:
            raise StorageError(f"{path}: not a ref: {error.errors()[0]['msg']}; {REWRITE}") from error
        except OSError as error:
            raise StorageError(f"{path}: cannot be read as a ref: {error.strerror}; {_remedy(error)}") from error

    def read_or_none(self, name: str) -> Ref | None:
        """Return what a ref names, like `read`, but None also for a ref that cannot be read."""
        try:
            return self.read(name)
        except StorageError:
            return None

    def write(self, name: str, version: int, by: str, reason: str) -> Ref:
        """Write a ref. A folder at its path is moved aside."""
        self._make_way(name)
        ref = Ref(version=version, since=time.time(), by=by, reason=reason)
        spares.write_record(self.path(name), ref)
        return ref

    def keep_spares(self) -> None:
        """Keep the space that moving the refs of a rollback needs."""
        for name in ROLLED_BACK:
            spares.keep_spare(self.path(name))

    def remove(self, name: str) -> None:
        """Remove a ref; it is no error when there is none. A folder at its path is moved aside."""
        self._make_way(name)
        durable.remove_file(self.path(name))

    def exists(self, name: str) -> bool:
        """Return whether anything exists at the path of a ref, also a dangling link."""
        return os.path.lexists(self.path(name))

    def pins(self) -> list[int]:
        """Return pinned versions, ascending."""
        return numbers(self.folder, PIN)

    def _make_way(self, name: str) -> None:
        """Move a folder aside: a rename cannot replace it, and its content may be somebody's."""
        path = self.path(name)
        if path.is_dir() and not path.is_symlink():
            durable.move_aside(path)


def pin_name(version: int) -> str:
    """Return the name of the ref that pins a version."""
    return f"{PIN}{version:06d}"


def check_reason(reason: str) -> None:
    """Raise InvalidReason, with the place, for control characters, text that UTF-8 cannot express, or too much text."""
    if len(reason) > LONGEST_REASON:
        raise InvalidReason(f"reason: {len(reason)} characters, at most {LONGEST_REASON} are allowed; shorten it")
    for position, character in enumerate(reason):
        # Cs: half a character, as JSON can name it, or a byte of the command line that is not UTF-8
        if unicodedata.category(character) in ("Cc", "Cs") and character not in ALLOWED:
            raise InvalidReason(f"reason: {character!a} at position {position} is not text; remove it, or use UTF-8")


def _remedy(error: OSError) -> str:
    if error.errno in NO_REF:
        return REWRITE
    return "let this user read it" if error.errno in FORBIDDEN else "check the disk and the mount"


def _content(path: Path) -> bytes | None:
    """Return the file's bytes; None when it does not exist."""
    for _ in range(STALE_READS - 1):
        try:
            return read_small(path, MOST_BYTES)
        except FileNotFoundError:
            if not _is_listed(path):
                return None
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return read_small(path, MOST_BYTES)


def _is_listed(path: Path) -> bool:
    """Return whether the folder lists the name: a network mount caches missing names, but listing asks the server."""
    try:
        return any(entry.name == path.name for entry in path.parent.iterdir())
    except FileNotFoundError:
        return False
