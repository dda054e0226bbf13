"""Refs of the checkpoint registry: `serving`, `previous`, `pinned-000003`, one small JSON each, replaced as a whole.

A reader opens the file by its name at every look and keeps nothing open. It never asks for a modification time: on a
network mount attributes are cached for seconds up to a minute, while opening asks the server.
"""

import errno
import time
from pathlib import Path

from pydantic import ValidationError

from storage import durable
from storage.errors import StorageError
from storage.manifest import Ref
from storage.numbered import numbers

PIN = "pinned-"
STALE_READS = 5
"""On NFS a file that is replaced between open and read is stale: it is opened again, at most so often."""


class Refs:
    """The folder of refs. Writing is for the registry's writer, under its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, name: str) -> Path:
        """The file of a ref."""
        return self.folder / name

    def read(self, name: str) -> Ref | None:
        """What a ref names; none when there is no such ref. Raises StorageError when it cannot be understood."""
        data = _content(self.path(name))
        if data is None:
            return None
        try:
            return Ref.model_validate_json(data)
        except ValidationError as error:
            raise StorageError(
                f"{self.path(name)}: not a ref: {error.errors()[0]['msg']}; "
                "stop `mfmd run`, then `mfmd check --repair` rewrites it"
            ) from error

    def read_or_none(self, name: str) -> Ref | None:
        """As `read`; none for one that cannot be understood, too."""
        try:
            return self.read(name)
        except StorageError:
            return None

    def write(self, name: str, version: int, by: str, reason: str) -> Ref:
        """Let a ref name a version."""
        ref = Ref(version=version, since=time.time(), by=by, reason=reason)
        durable.write_record(self.path(name), ref)
        return ref

    def remove(self, name: str) -> None:
        """Remove a ref; it is no error when there is none."""
        durable.remove_file(self.path(name))

    def pins(self) -> list[int]:
        """Pinned versions, ascending."""
        return numbers(self.folder, PIN)


def pin_name(version: int) -> str:
    """Name of the ref that pins a version."""
    return f"{PIN}{version:06d}"


def _content(path: Path) -> bytes | None:
    """The file's bytes, none when it does not exist."""
    for _ in range(STALE_READS - 1):
        try:
            return path.read_bytes()
        except FileNotFoundError:
            if not _is_listed(path):
                return None
        except OSError as error:
            if error.errno != errno.ESTALE:
                raise
    return path.read_bytes()


def _is_listed(path: Path) -> bool:
    """A network mount also remembers that a name did not exist; opening its folder makes it ask again."""
    try:
        return any(entry.name == path.name for entry in path.parent.iterdir())
    except FileNotFoundError:
        return False
