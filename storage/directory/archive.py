"""What a backup is: a tar of regular files, `format.json` first, and last a mark that says that all of it is there."""

from typing import Protocol

from pydantic import BaseModel, ConfigDict

FORMAT_FILE = "format.json"
MARK = "backup.json"


class BackupMark(BaseModel):
    """The last file of a backup."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    files: int
    """Files before this one."""
    sha256: str
    """Hex SHA-256 of their names and contents."""
    at: float
    """When the backup was made (Unix seconds)."""


class _Digest(Protocol):
    def update(self, data: bytes, /) -> None: ...


class _Readable(Protocol):
    def read(self, size: int = -1, /) -> bytes: ...


class Hashed:
    """A file whose name and content go through a digest while it is read."""

    def __init__(self, name: str, source: _Readable, digest: _Digest) -> None:
        self._source, self._digest = source, digest
        digest.update(name.encode(errors="surrogateescape") + b"\0")

    def read(self, size: int = -1) -> bytes:
        """Return the next `size` bytes, all of the rest by default."""
        data = self._source.read(size)
        self._digest.update(data)
        return data
