"""Bases: frozen tensors, stored once for all versions that share them, in files named by their content.

bases/SHA256.safetensors    what the versions that name it have in common; removed with the last of them

A weights file names its base in its header, so its own digest stands for all weights of the version.
"""

import json
import re
from collections.abc import Collection
from pathlib import Path

from storage import durable
from storage.durable.digest import digest_of
from storage.durable.record import FileHash
from storage.errors import CorruptCheckpoint

KEY = "mfmd.base"
"""Entry in the metadata of a weights file: hex SHA-256 of its base."""
SUFFIX = ".safetensors"
_LENGTH_BYTES = 8
"""Bytes of the header's length (little endian) at the start of a safetensors file."""
_MOST_HEADER_BYTES = 100_000_000
"""Longest header that safetensors itself reads."""
_DIGEST = re.compile(r"[0-9a-f]{64}")
_AGAIN = "restore it from a backup, or import the model again that it came from"


def base_named_in(weights: Path) -> str | None:
    """Return the digest of the base that a safetensors file names; None: the file holds all weights itself.

    A file that cannot be parsed names none: the damage is reported where its tensors are read. Raises OSError.
    """
    with weights.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
        header = file.read(length) if length <= _MOST_HEADER_BYTES else b""
    try:
        named = json.loads(header)["__metadata__"][KEY]
    except (ValueError, LookupError, TypeError):
        return None
    return named if isinstance(named, str) else None


class Bases:
    """The folder of bases of a registry. Only the registry's writer writes, under its lock."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, digest: str) -> Path:
        """Return the file of a base, whether it exists or not. Raises CorruptCheckpoint for what is no digest."""
        if not _DIGEST.fullmatch(digest):
            raise CorruptCheckpoint(f"{self.folder}: {digest[:80]!r} is not the SHA-256 of a base")
        return self.folder / f"{digest}{SUFFIX}"

    def keep(self, digest: str, source: Path | None) -> FileHash:
        """Store the file `source` as the base `digest`, unless an intact one is there; None: it must be there.

        Raises CorruptCheckpoint when it is then missing or damaged, or when `source` has another digest; nothing is
        stored.
        """
        path = self.path(digest)
        if source is not None and (found := digest_of(source)) != digest:
            raise CorruptCheckpoint(f"{source}: has SHA-256 {found}, but the weights name base {digest}")
        if not path.is_file() or digest_of(path) != digest:
            if source is None:
                raise CorruptCheckpoint(f"{path}: missing or damaged, but the weights name this base; {_AGAIN}")
            durable.make_directory(self.folder)
            durable.copy_in(source, path)
        return FileHash(sha256=digest, size=path.stat().st_size)

    def verify(self, base: FileHash, *, content: bool) -> None:
        """Compare a base with what a manifest says of it; without `content` only its size. Raises CorruptCheckpoint."""
        path = self.path(base.sha256)
        try:
            size = path.stat().st_size
            found = digest_of(path) if content and size == base.size else base.sha256
        except FileNotFoundError as error:
            raise CorruptCheckpoint(f"{path}: missing; versions with this base cannot serve: {_AGAIN}") from error
        if size != base.size:
            raise CorruptCheckpoint(f"{path}: {size} bytes, expected {base.size}; {_AGAIN}")
        if found != base.sha256:
            raise CorruptCheckpoint(f"{path}: content has SHA-256 {found}, not that of its name; {_AGAIN}")

    def unused(self, named: Collection[str]) -> list[Path]:
        """Return the files of bases that are not among the digests `named`."""
        found = sorted(self.folder.glob(f"*{SUFFIX}"))
        return [path for path in found if _DIGEST.fullmatch(path.stem) and path.stem not in named]

    def remove_partials(self) -> None:
        """Remove what a killed writer left."""
        if self.folder.is_dir():
            durable.remove_partials(self.folder)
