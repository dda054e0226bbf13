"""The checkpoint registry: numbered versions that never change, refs that name them, a history of every move.

versions/000042/{manifest.json, model.safetensors}    appears complete or not at all
refs/{serving, previous, pinned-000003}                one small JSON each
history.jsonl                                          a line is durable before the ref it announces moves
pruned/000003.json                                     manifests of versions whose weights were removed
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, NoReturn

from pydantic import ValidationError

from storage import durable
from storage.digest import digest_of
from storage.errors import CorruptCheckpoint, ServingChanged, StorageError, UnknownVersion
from storage.history import read_history, rolled_back_from, served_before, served_stack
from storage.manifest import HistoryEvent, Manifest, Ref

WEIGHTS = "model.safetensors"
MANIFEST = "manifest.json"


class CheckpointRegistry:
    """Versions and refs under one folder. Reading takes no lock; everything that writes holds `.lock`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._versions = root / "versions"
        self._refs = root / "refs"
        self._pruned = root / "pruned"
        self._history = root / "history.jsonl"

    def add(self, weights: Path, manifest: Manifest, by: str, reason: str = "") -> Manifest:
        """Copy a weights file in as the next version; returns the manifest with number and hashes filled in."""
        with self._writing():
            version = self._next_number()
            temporary = self._versions / f".{version:06d}{durable.PARTIAL}"
            temporary.mkdir()
            files = {WEIGHTS: durable.copy_in(weights, temporary / WEIGHTS)}
            complete = manifest.model_copy(update={"version": version, "files": files})
            durable.write_record(temporary / MANIFEST, complete)
            durable.publish_directory(temporary, self._folder(version))
            self._note("added", version, by=by, reason=reason, round=manifest.round)
            return self.manifest(version)

    def versions(self) -> list[int]:
        """Numbers of the versions on disk, ascending."""
        return _numbers(self._versions, "")

    def manifest(self, version: int) -> Manifest:
        """The manifest of a version. Raises UnknownVersion, or CorruptCheckpoint when it cannot be read."""
        folder = self._folder(version)
        if not folder.is_dir():
            self._unknown(version)
        return _read_manifest(folder / MANIFEST)

    def weights_path(self, version: int) -> Path:
        """The safetensors file of a version. Raises UnknownVersion."""
        folder = self._folder(version)
        if not folder.is_dir():
            self._unknown(version)
        return folder / WEIGHTS

    def verify(self, version: int, *, content: bool = True) -> None:
        """Compare every file of a version with its manifest, its size only unless `content`.

        Raises UnknownVersion or CorruptCheckpoint.
        """
        manifest, folder = self.manifest(version), self._folder(version)
        if manifest.version != version or WEIGHTS not in manifest.files:
            raise CorruptCheckpoint(f"{folder / MANIFEST}: not the manifest of version {version}")
        for name, expected in manifest.files.items():
            path = folder / name
            size = path.stat().st_size if path.is_file() else None
            if size != expected.size:
                raise CorruptCheckpoint(f"{path}: {size if size is not None else 'no'} bytes, expected {expected.size}")
            if content and digest_of(path) != expected.sha256:
                raise CorruptCheckpoint(f"{path}: content does not match the SHA-256 in the manifest")

    def ref(self, name: Literal["serving", "previous"]) -> Ref | None:
        """What a ref points at; none when nothing was promoted yet. Raises StorageError when it cannot be read."""
        return self._read_ref(name)

    def promote(
        self, version: int, *, by: str, reason: str, round: int | None = None, expected: int | None = None
    ) -> Ref:
        """Make a version serve, after verifying it; if `expected` is given, only while that version serves.

        Raises ServingChanged, UnknownVersion or CorruptCheckpoint; then nothing moved.
        """
        with self._writing():
            self.verify(version)
            serving = self._read_ref("serving")
            if expected is not None and (serving is None or serving.version != expected):
                now = f"version {serving.version} serves" if serving else "no version serves"
                raise ServingChanged(f"{now}, not version {expected}; version {version} was not promoted")
            if serving is not None and serving.version == version:
                raise StorageError(f"version {version} serves already")
            before = serving.version if serving else None
            self._note("promoted", version, by=by, reason=reason, previous=before, round=round)
            return self._move(version, before, by, reason)

    def roll_back(self, *, to: int | None, by: str, reason: str) -> Ref:
        """Make an earlier version serve: `to`, or the one that served before.

        The version rolled back from counts as bad from then on, and `previous` becomes what served before the
        target, so that a second rollback goes one further back and never forward to a bad version.
        Raises UnknownVersion when there is no such version, CorruptCheckpoint when it is damaged; then nothing moved.
        """
        with self._writing():
            serving = self._read_ref("serving")
            target = self._target(to, serving)
            self.verify(target)
            events = self.history()
            bad = rolled_back_from(events) | ({serving.version} if serving else set())
            before = served_before(events, target, [item for item in self.versions() if item not in bad])
            self._note("rolled_back", target, by=by, reason=reason, previous=serving.version if serving else None)
            return self._move(target, before, by, reason)

    def restore(self, *, by: str, reason: str) -> Ref:
        """Write `serving` and `previous` again after damage: the last version that served and is whole serves.

        A version that serves and is whole stays. One that served and is damaged counts as rolled back from.
        Raises UnknownVersion when no version that ever served is whole; then nothing moved.
        """
        with self._writing():
            events, current = self.history(), self._version_named("serving")
            stack = served_stack(events)
            served = [item for item in (current, *reversed(stack), self._version_named("previous")) if item]
            target = next((version for version in served if self._whole(version)), None)
            if target is None:
                raise UnknownVersion(f"{self._refs / 'serving'}: no version that ever served is whole")
            if target != (stack[-1] if stack else current):
                broken = current or stack[-1]
                self._note("rolled_back", target, by=by, reason=reason, previous=broken if broken != target else None)
            bad = rolled_back_from(self.history())
            usable = [version for version in self.versions() if version not in bad]
            before, serving = served_before(self.history(), target, usable), self._read_ref_or_none("serving")
            if serving is None or serving.version != target:
                return self._move(target, before, by, reason)
            self._name_previous(before, by, reason)
            return serving

    def rolled_back(self) -> set[int]:
        """Versions that were rolled back from and have not been made to serve since."""
        return rolled_back_from(self.history())

    def record(self, event: HistoryEvent) -> None:
        """Add a line to the history, durably."""
        with self._writing():
            self._append(event)

    def history(self) -> list[HistoryEvent]:
        """Every event, oldest first. A line whose ref did not move means that the process died between the two."""
        return read_history(self._history)

    def ref_path(self, name: str) -> Path:
        """The file of a ref: `serving`, `previous` or `pinned-NNNNNN`."""
        return self._refs / name

    def given(self) -> set[int]:
        """Every number that a version ever had, of pruned ones too."""
        named = {event.version for event in self.history() if event.event == "added" and event.version is not None}
        return named | set(self.versions()) | set(_numbers(self._pruned, ""))

    def pin(self, version: int, by: str, reason: str = "") -> Ref:
        """Keep a version whatever retention says. Raises UnknownVersion."""
        with self._writing():
            self.manifest(version)
            self._note("pinned", version, by=by, reason=reason)
            return self._write_ref(f"pinned-{version:06d}", version, by, reason)

    def unpin(self, version: int, by: str, reason: str = "") -> None:
        """Leave a version to retention again. Raises UnknownVersion when it is not pinned."""
        with self._writing():
            if version not in self.pins():
                raise UnknownVersion(f"version {version} is not pinned; pinned: {_listed(self.pins())}")
            self._note("unpinned", version, by=by, reason=reason)
            durable.remove_file(self._refs / f"pinned-{version:06d}")

    def pins(self) -> list[int]:
        """Pinned versions, ascending."""
        return _numbers(self._refs, "pinned-")

    def released(self, version: int) -> int:
        """The model that was released: the oldest ancestor of `version` still present, or `version` itself.

        Manifests of pruned versions are kept, so the chain of parents does not break. Raises UnknownVersion.
        """
        present, found, current = self.versions(), version, self.manifest(version).parent
        while current is not None:
            found = current if current in present else found
            parent = self._parent(current)
            current = parent if parent is not None and parent < current else None
        return found

    def prune(self, keep: int) -> list[int]:
        """Remove the oldest versions beyond `keep`; returns their numbers.

        Serving, previous and pinned versions and the released ancestor of serving are never removed nor counted.
        """
        with self._writing():
            protected = self._protected()
            others = [version for version in self.versions() if version not in protected]
            removed = others[: max(0, len(others) - keep)]
            for version in removed:
                durable.write_bytes(
                    self._pruned / f"{version:06d}.json", (self._folder(version) / MANIFEST).read_bytes()
                )
                self._note("pruned", version, by="retention", reason=f"keep {keep}")
                durable.retire_directory(self._folder(version))
            return removed

    def _protected(self) -> set[int]:
        serving, previous = self._read_ref("serving"), self._read_ref("previous")
        protected = {ref.version for ref in (serving, previous) if ref} | set(self.pins())
        if serving is not None and serving.version in self.versions():
            protected.add(self.released(serving.version))
        return protected

    def _target(self, to: int | None, serving: Ref | None) -> int:
        if to is None:
            previous = self._read_ref("previous")
            if previous is None or serving is None or previous.version == serving.version:
                what = f"no version served before {serving.version}" if serving else "no version serves yet"
                raise UnknownVersion(f"nothing to roll back to: {what}; versions: {_listed(self.versions())}")
            return previous.version
        if serving is not None and to == serving.version:
            raise StorageError(f"version {to} serves already; nothing to roll back")
        return to

    def _move(self, version: int, before: int | None, by: str, reason: str) -> Ref:
        """Set `previous`, then `serving`: between the two, the old version serves and is a version that exists."""
        self._name_previous(before, by, reason)
        return self._write_ref("serving", version, by, reason)

    def _name_previous(self, version: int | None, by: str, reason: str) -> None:
        if version is not None:
            self._write_ref("previous", version, by, reason)
        else:
            durable.remove_file(self._refs / "previous")

    def _parent(self, version: int) -> int | None:
        for path in (self._folder(version) / MANIFEST, self._pruned / f"{version:06d}.json"):
            if path.is_file():
                return _read_manifest(path).parent
        return None

    def _next_number(self) -> int:
        """Numbers are never used twice, not even those of pruned versions."""
        return max(self.given(), default=0) + 1

    def _version_named(self, name: str) -> int | None:
        """The version that a ref points at; none when it is missing or cannot be read."""
        ref = self._read_ref_or_none(name)
        return ref.version if ref else None

    def _read_ref_or_none(self, name: str) -> Ref | None:
        try:
            return self._read_ref(name)
        except StorageError:
            return None

    def _whole(self, version: int) -> bool:
        try:
            self.verify(version)
        except (UnknownVersion, CorruptCheckpoint):
            return False
        return True

    def _read_ref(self, name: str) -> Ref | None:
        path = self._refs / name
        try:
            return Ref.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except ValidationError as error:
            raise StorageError(
                f"{path}: not a ref: {error.errors()[0]['msg']}; `mfmd check --repair` rewrites it"
            ) from error

    def _write_ref(self, name: str, version: int, by: str, reason: str) -> Ref:
        ref = Ref(version=version, since=time.time(), by=by, reason=reason)
        durable.write_record(self._refs / name, ref)
        return ref

    def _note(self, event: str, version: int, *, by: str, reason: str, **more: int | None) -> None:
        values = {"at": time.time(), "event": event, "version": version, "by": by, "reason": reason, **more}
        self._append(HistoryEvent.model_validate(values))

    def _append(self, event: HistoryEvent) -> None:
        durable.append_line(self._history, event.model_dump_json())

    def _folder(self, version: int) -> Path:
        return self._versions / f"{version:06d}"

    def _unknown(self, version: int) -> NoReturn:
        raise UnknownVersion(f"no version {version} in {self.root}; versions: {_listed(self.versions())}")

    @contextmanager
    def _writing(self) -> Iterator[None]:
        for folder in (self._versions, self._refs, self._pruned):
            durable.make_directory(folder)
        with durable.exclusive_lock(self.root / ".lock", wait=True):
            for folder in (self._versions, self._refs, self._pruned):
                durable.remove_partials(folder)
            yield


def _read_manifest(path: Path) -> Manifest:
    try:
        return Manifest.model_validate_json(path.read_bytes())
    except FileNotFoundError as error:
        raise CorruptCheckpoint(f"{path}: missing; roll back to another version") from error
    except ValidationError as error:
        raise CorruptCheckpoint(f"{path}: not a manifest: {error.errors()[0]['msg']}") from error


def _numbers(folder: Path, prefix: str) -> list[int]:
    names = (path.name.removesuffix(".json").removeprefix(prefix) for path in folder.glob(f"{prefix}[0-9]*"))
    return sorted(int(name) for name in names if name.isdigit())


def _listed(versions: list[int]) -> str:
    return ", ".join(map(str, versions)) or "none"
