"""Folders of versions, each complete or absent: manifest and weights, verified by the hashes in the manifest.

The weights of a version lie in its own file, or in that and in the base that its manifest names (`bases.py`).
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from storage import durable
from storage.durable.digest import digest_of
from storage.durable.record import validated
from storage.errors import CorruptCheckpoint, NewerRecord, NewerVersion, UnknownVersion
from storage.registry.bases import Bases, base_named_in
from storage.registry.files import NO_FILE, listed, numbers, read_small
from storage.registry.manifest import Manifest

WEIGHTS = "model.safetensors"
WITH_BASE: Literal[3] = 3
"""Format of a manifest that names a base; without one it stays as before, so that an older mfmd reads it."""
MANIFEST = "manifest.json"
MOST_MANIFEST_BYTES = 1 << 26
"""Largest size of a manifest (bytes), with room to spare."""


class Versions:
    """`versions/` and `pruned/` of a registry. Only the registry's writer writes, under its lock."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._folders, self._pruned = root / "versions", root / "pruned"
        self.bases = Bases(root / "bases")
        """Frozen tensors that versions share."""

    def versions(self) -> list[int]:
        """Return the numbers of the versions on disk, ascending."""
        return numbers(self._folders)

    def folder(self, version: int) -> Path:
        """Return the folder of a version, whether it exists or not: `versions/000042`."""
        return self._folders / f"{version:06d}"

    def weights_path(self, version: int) -> Path:
        """Return the safetensors file of a version itself: all weights but its base. Raises UnknownVersion."""
        return self._existing(version) / WEIGHTS

    def weight_files(self, version: int) -> tuple[Path, ...]:
        """Return the safetensors files that together hold the weights of a version: its own, then its base, if any.

        Raises UnknownVersion, or CorruptCheckpoint when its manifest cannot be read.
        """
        base, weights = self.manifest(version).base, self.weights_path(version)
        return (weights, self.bases.path(base.sha256)) if base is not None else (weights,)

    def with_base(self, weights: Path) -> tuple[Path, ...]:
        """Return a weights file that is no version yet, and the base that it names, if any. Raises OSError."""
        base = base_named_in(weights)
        return (weights, self.bases.path(base)) if base is not None else (weights,)

    def manifest(self, version: int) -> Manifest:
        """Return the manifest of a version. Raises UnknownVersion, or CorruptCheckpoint when it cannot be read."""
        with self._while_there(self._existing(version)) as folder:
            return read_manifest(folder / MANIFEST)

    def verify(self, version: int, *, content: bool = True, intact: set[str] | None = None) -> None:
        """Compare every file of a version with its manifest, its base included; without `content` only their sizes.

        `intact`: digests of bases that need not be read again; that of this version joins them.

        Raises UnknownVersion or CorruptCheckpoint.
        """
        manifest = self.manifest(version)
        with self._while_there(self.folder(version)) as folder:
            if manifest.version != version or WEIGHTS not in manifest.files:
                raise CorruptCheckpoint(f"{folder / MANIFEST}: not the manifest of version {version}")
            for name, expected in manifest.files.items():
                path = folder / name
                if (size := path.stat().st_size) != expected.size:
                    raise CorruptCheckpoint(f"{path}: {size} bytes, expected {expected.size}")
                if content and digest_of(path) != expected.sha256:
                    raise CorruptCheckpoint(f"{path}: content does not match the SHA-256 in the manifest")
            if content and base_named_in(folder / WEIGHTS) != (manifest.base and manifest.base.sha256):
                raise CorruptCheckpoint(f"{folder / MANIFEST}: names another base than {WEIGHTS} beside it")
            if manifest.base is not None:
                known = intact if intact is not None else set()
                self.bases.verify(manifest.base, content=content and manifest.base.sha256 not in known)
                known |= {manifest.base.sha256} if content else set()

    def released(self, version: int) -> int:
        """Return the released model: the oldest ancestor of `version` still present, or `version` itself.

        Manifests of pruned versions are kept, so the chain of parents does not break. Raises UnknownVersion.
        """
        present, found, current = self.versions(), version, self.manifest(version).parent
        while current is not None:
            found = current if current in present else found
            parent = self._parent(current)
            current = parent if parent is not None and parent < current else None
        return found

    def _whole(self, version: int) -> bool:
        try:
            self.verify(version)
        except (UnknownVersion, CorruptCheckpoint):
            return False
        return True

    def unused_bases(self) -> list[Path]:
        """Return the files of bases that no version names; none while a manifest cannot be read."""
        if not self.bases.folder.is_dir():
            return []
        try:
            manifests = [self.manifest(version) for version in self.versions()]
        except (UnknownVersion, CorruptCheckpoint):
            return []
        return self.bases.unused({item.base.sha256 for item in manifests if item.base is not None})

    def _remove_unused_bases(self) -> None:
        for path in self.unused_bases():
            durable.remove_file(path)

    def _publish(self, version: int, weights: Path, manifest: Manifest, base: Path | None) -> None:
        """Copy weights in as `version`, the base first: the folder appears complete or not at all."""
        if (digest := base_named_in(weights)) is not None:
            kept = self.bases.keep(digest, base)
            manifest = manifest.model_copy(update={"base": kept, "schema_version": WITH_BASE})
        temporary = self._folders / f".{version:06d}{durable.PARTIAL}"
        temporary.mkdir()
        files = {WEIGHTS: durable.copy_in(weights, temporary / WEIGHTS)}
        durable.write_record(temporary / MANIFEST, manifest.model_copy(update={"version": version, "files": files}))
        durable.publish_directory(temporary, self.folder(version))

    def _keep_manifest(self, version: int) -> None:
        """Keep the manifest of a version that is about to be removed, for the chain of parents."""
        content = read_small(self.folder(version) / MANIFEST, MOST_MANIFEST_BYTES)
        durable.write_bytes(self._pruned / f"{version:06d}.json", content)

    def _parent(self, version: int) -> int | None:
        for path in (self.folder(version) / MANIFEST, self._pruned / f"{version:06d}.json"):
            with suppress(FileNotFoundError):  # pruned, maybe just now: the copy is there before the version goes
                return read_manifest(path).parent
        return None

    def _existing(self, version: int) -> Path:
        folder = self.folder(version)
        if not folder.is_dir():
            raise UnknownVersion(f"no version {version} in {self.root}; versions: {listed(self.versions())}")
        return folder

    @contextmanager
    def _while_there(self, folder: Path) -> Iterator[Path]:
        """Read in a version's folder: a missing file is damage, unless the whole version was removed meanwhile."""
        try:
            yield folder
        except FileNotFoundError as error:
            if folder.is_dir():
                raise CorruptCheckpoint(f"{error.filename}: missing; roll back to another version") from error
            raise UnknownVersion(
                f"{folder}: removed while it was read; serve another version (`mfmd promote N`) or bring its "
                f"files back; versions: {listed(self.versions())}"
            ) from error


def read_manifest(path: Path) -> Manifest:
    """Return the manifest in a file. Raises NewerVersion, CorruptCheckpoint, or OSError."""
    try:
        return validated(read_small(path, MOST_MANIFEST_BYTES), Manifest, path)
    except NewerRecord as error:
        raise NewerVersion(str(error)) from error
    except OSError as error:
        if error.errno not in NO_FILE:
            raise
        raise CorruptCheckpoint(f"{path}: not a manifest: {error.strerror}") from error
    except ValidationError as error:
        raise CorruptCheckpoint(f"{path}: not a manifest: {error.errors()[0]['msg']}") from error
