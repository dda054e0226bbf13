"""The checkpoint registry: numbered versions that never change, refs that name them, a history of every move.

versions/000042/{manifest.json, model.safetensors}    appears complete or not at all
refs/{serving, previous, shadow, pinned-000003}       one small JSON each
history.jsonl                                         a line is durable before its ref moves
pruned/000003.json                                    manifests of versions whose weights were removed
bases/SHA256.safetensors                              frozen tensors that versions share, see bases.py
"""

import time
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

from storage import durable
from storage.durable import spares
from storage.errors import CorruptCheckpoint, NoCheckpoint, NotEarlier, ServingChanged, StorageError, UnknownVersion
from storage.registry.files import listed, numbers
from storage.registry.history import RegistryState, read_history
from storage.registry.manifest import HistoryEvent, Manifest, Ref
from storage.registry.refs import Refs, check_reason, pin_name
from storage.registry.versions import MANIFEST, Versions

OTHER_REFS: tuple[Literal["previous"], Literal["shadow"]] = ("previous", "shadow")
"""Refs beside `serving` and the pins."""


class CheckpointRegistry(Versions):
    """Versions and refs under one folder. Reading takes no lock; every writer holds `.lock`."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self._refs = Refs(root / "refs")
        self._history = root / "history.jsonl"

    def add(
        self, weights: Path, manifest: Manifest, by: str, reason: str = "", *, base: Path | None = None
    ) -> Manifest:
        """Copy a weights file in as the next version; return the manifest with number and hashes.

        `base` is the file of the base that `weights` names, which may be left out when a version has it already.
        Raises CorruptCheckpoint when it is then missing or damaged, or has another digest; nothing is added.
        """
        with self._writing():
            version = max(self.given(), default=0) + 1  # no number twice, not even that of a pruned version
            self._publish(version, weights, manifest, base)
            self._append(_event("added", version, by, reason, round=manifest.round))
            return self.manifest(version)

    def serving(self) -> Ref | None:
        """Return what serves; None before the first promotion.

        Raises StorageError when the ref cannot be read, or is missing although the history says that a version serves.
        """
        serving = self._refs.read("serving")
        if serving is None and (lost := RegistryState(self.history()).serves_last) is not None:
            raise StorageError(
                f"{self.ref_path('serving')}: missing, but version {lost} was promoted; "
                "stop `mfmd run`, then `mfmd check --repair` writes it again"
            )
        return serving

    def serving_version(self) -> int:
        """Return the version that serves.

        Raises NoCheckpoint when none does yet, UnknownVersion when its folder is gone, StorageError like `serving`.
        """
        serving = self.serving()
        if serving is None:
            raise NoCheckpoint("no version serves yet: `mfmd pretrain` trains one, `mfmd import PATH` imports one")
        if serving.version not in self.versions():
            gone = f"version {serving.version} should serve, but its folder {self.folder(serving.version)} is missing"
            raise UnknownVersion(f"{gone}; {self.instead_of(serving.version)}")
        return serving.version

    def instead_of(self, version: int) -> str:
        """Return what an operator can do when `version` should serve but cannot."""
        others = [number for number in self.versions() if number != version]
        if others:
            return f"restore it from a backup, or serve another with `mfmd promote N`; others: {listed(others)}"
        return "no other version exists: restore it from a backup, or `mfmd import PATH` and then `mfmd promote N`"

    def ref(self, name: Literal["previous", "shadow"]) -> Ref | None:
        """Return what another ref names; None when it does not exist. Raises StorageError when it cannot be read."""
        return self._refs.read(name)

    def readable_refs(self) -> tuple[dict[str, Ref], list[str]]:
        """Return what serving, previous and shadow name, as far as readable, and what is wrong with the others."""
        found: dict[str, Ref] = {}
        damage: list[str] = []
        for name in ("serving", *OTHER_REFS):
            try:
                ref = self.serving() if name == "serving" else self._refs.read(name)
            except StorageError as error:
                damage.append(str(error))
            else:
                found |= {name: ref} if ref is not None else {}
        return found, damage

    def state(self) -> RegistryState:
        """Return what serves, served before, and was rolled back, from the history and the serving ref."""
        return RegistryState(self.history(), self._version_named("serving"))

    def set_shadow(self, version: int | None, *, by: str, reason: str, over: str | None = None) -> bool:
        """Run `version` in the shadow of the serving one on the inference planes; None ends that.

        `over`: only if there is no shadow, or one that `over` set; another's stays. Returns whether the ref moved.
        Raises UnknownVersion, CorruptCheckpoint when it is damaged, or InvalidReason; then nothing moved.
        """
        check_reason(reason)
        with self._writing():
            now = self._refs.read_or_none("shadow")
            if over is not None and now is not None and now.by != over:
                return False
            if version is not None:
                self.verify(version)
                with self._announced("shadow", _event("shadow_started", version, by, reason)):
                    self._refs.write("shadow", version, by, reason)
            elif self._refs.exists("shadow"):
                self._append(_event("shadow_ended", now.version if now else None, by, reason))
                self._refs.remove("shadow")
            return True

    def judged(self, version: int, verdict: dict[str, Any]) -> None:
        """Write the gate's verdict into the manifest of a version that was added before its verdict.

        This is the only part of a version that ever changes. Raises UnknownVersion or CorruptCheckpoint.
        """
        with self._writing():
            manifest, folder = self.manifest(version), self.folder(version)
            durable.remove_partials(folder)
            durable.write_record(folder / MANIFEST, manifest.model_copy(update={"verdict": verdict}))

    def promote(
        self,
        version: int,
        *,
        by: str,
        reason: str,
        round: int | None = None,
        expected: int | None = None,
        refuse_rolled_back: bool = False,
        recalled: bool = False,
    ) -> Ref:
        """Make any version serve, after verifying it.

        The version left does not count as rolled back, so it becomes `previous` and a plain rollback leads back to it.
        `expected`: only while that version serves. Without it, a damaged or missing serving ref is no obstacle: the
        version left is then the one that the history names. `refuse_rolled_back`: not a version that was rolled back.
        `recalled`: the history says that it served before and was recalled for its condition.
        Raises ServingChanged, UnknownVersion, CorruptCheckpoint, or StorageError when it serves already; then nothing
        moved.
        """
        with self._writing():
            self.verify(version)
            serving = self._refs.read_or_none("serving") if expected is None else self.serving()
            if expected is not None:
                _require_serving(serving, expected, f"version {version} was not promoted")
            if refuse_rolled_back and version in self.state().rolled_back:
                raise ServingChanged(f"version {version} was rolled back; it was not promoted again")
            if serving is not None and serving.version == version:
                raise StorageError(f"version {version} serves already")
            how: Literal["promoted", "recalled"] = "recalled" if recalled else "promoted"
            return self._serve(how, version, by=by, reason=reason, round=round)

    def roll_back(self, *, to: int | None, by: str, reason: str, expected: int | None = None) -> Ref:
        """Make an earlier version serve: `to`, or the one that served before.

        The version left counts as rolled back, so no plain rollback, repair or gate leads to it again. `previous`
        becomes what served before the target: a second rollback goes one further back. `expected`: only while that
        version serves. With `to` and without `expected`, a damaged or missing serving ref is no obstacle.
        Raises ServingChanged, UnknownVersion when there is no such version, CorruptCheckpoint when it is damaged,
        NotEarlier when it did not serve before, InvalidReason, or StorageError when it serves already or the ref is
        needed and cannot be read; then nothing moved.
        """
        check_reason(reason)
        with self._writing():
            named = to is not None and expected is None  # then what serves decides nothing
            serving = self._refs.read_or_none("serving") if named else self.serving()
            if expected is not None:
                _require_serving(serving, expected, "nothing was rolled back")
            return self._serve("rolled_back", self._target(to, serving), by=by, reason=reason)

    def restore(self, *, by: str, reason: str) -> Ref:
        """Rewrite `serving` and `previous` after damage: the last intact version that served becomes the serving one.

        An intact serving version stays. A damaged one that served counts as rolled back. A version that was rolled
        back, or that the gate did not accept, is not used. Raises UnknownVersion when no version is left; then nothing
        moved.
        """
        with self._writing():
            state, serving = self.state(), self._refs.read_or_none("serving")
            others = (*reversed(state.served), self._version_named("previous"))
            good = [item for item in others if item not in state.rolled_back | state.turned_down]
            named = serving.version if serving else None
            target = next((item for item in (named, *good) if item is not None and self._whole(item)), None)
            if target is None:
                raise UnknownVersion(
                    f"{self._refs.path('serving')}: no version that served and was not rolled back is intact; "
                    "`mfmd promote N` serves another"
                )
            if state.served and target != state.serves_last:
                return self._serve("rolled_back", target, by=by, reason=reason)
            self._name_previous(state.previous(self.versions()), by, reason)
            return serving if serving and named == target else self._refs.write("serving", target, by, reason)

    def record(self, event: HistoryEvent) -> None:
        """Add a line to the history, durably."""
        with self._writing():
            self._append(event)

    def history(self) -> list[HistoryEvent]:
        """Return every event, oldest first. A line whose ref did not move: the process was killed between the two.

        A line that does not parse was truncated by a crash: its event did not happen, so it is omitted.
        """
        return read_history(self._history)

    def history_size(self) -> int:
        """Return the length of the history (bytes), which grows with each event."""
        return self._history.stat().st_size if self._history.exists() else 0

    def keep_space(self) -> None:
        """Keep the space that a rollback needs, before a disk fills up. Without space now, a later writer keeps it."""
        with suppress(OSError), self._writing():
            pass

    def ref_path(self, name: str) -> Path:
        """Return the file of a ref: `serving`, `previous` or `pinned-NNNNNN`."""
        return self._refs.path(name)

    def given(self) -> set[int]:
        """Return every number that a version ever had, including pruned ones."""
        return {*self.state().added, *self.versions(), *numbers(self._pruned)}

    def pin(self, version: int, by: str, reason: str = "") -> Ref:
        """Protect a version from retention. Raises UnknownVersion, InvalidReason."""
        check_reason(reason)
        with self._writing():
            self.manifest(version)
            with self._announced(pin_name(version), _event("pinned", version, by, reason)):
                return self._refs.write(pin_name(version), version, by, reason)

    def unpin(self, version: int, by: str, reason: str = "") -> None:
        """Remove the protection. Raises UnknownVersion when the version is not pinned, InvalidReason."""
        check_reason(reason)
        with self._writing():
            if version not in self.pins():
                raise UnknownVersion(f"version {version} is not pinned; pinned: {listed(self.pins())}")
            self._append(_event("unpinned", version, by, reason))
            self._refs.remove(pin_name(version))

    def pins(self) -> list[int]:
        """Return pinned versions, ascending."""
        return self._refs.pins()

    def prunable(self, keep: int, spare: Collection[int] = ()) -> list[int]:
        """Return versions that `prune` would remove now.

        These are the oldest beyond `keep` of those that served, and all but the newest few that never served. Serving,
        previous, shadow and pinned versions, the released ancestor of serving and `spare` stay and are not counted.
        Raises StorageError while a ref is damaged or the serving one is missing: the version that it named would count
        as unused.
        """
        return self.state().removable(self.versions(), self._protected() | set(spare), keep)

    def prune(self, keep: int, spare: Collection[int] = (), *, by: str = "retention") -> list[int]:
        """Remove the versions of `prunable`, then bases that no version names any more; return the numbers."""
        with self._writing():
            removed = self.prunable(keep, spare)
            for version in removed:
                self._keep_manifest(version)
                self._append(_event("pruned", version, by, f"keep {keep}"))
                durable.retire_directory(self.folder(version))
            self._remove_unused_bases()
            return removed

    def remove_unused_bases(self) -> None:
        """Remove bases that no version names: a killed process left them."""
        with self._writing():
            self._remove_unused_bases()

    def _protected(self) -> set[int]:
        serving, *others = self.serving(), *(self.ref(name) for name in OTHER_REFS)
        protected = {ref.version for ref in (serving, *others) if ref} | set(self.pins())
        if serving is not None:
            # A process that died between the two refs left `previous` where the next rollback does not lead.
            protected.add(self._before() or serving.version)
            if serving.version in self.versions():
                protected.add(self.released(serving.version))
        return protected

    def _target(self, to: int | None, serving: Ref | None) -> int:
        """Return the verified target of a rollback."""
        state, now = self.state(), serving.version if serving else None
        if to is not None and to == now:
            raise StorageError(f"version {to} serves already; nothing to roll back")
        target = to if to is not None else self._before() if serving else None
        if target is None:
            what = f"no version served before {now} that was not rolled back" if serving else "no version serves yet"
            others = [version for version in self.versions() if version != now]
            other = f"`mfmd promote N` serves any version of {listed(others)}" if others else "no other version exists"
            raise UnknownVersion(f"nothing to roll back to: {what}; {other}")
        try:
            self.verify(target)
        except CorruptCheckpoint as error:
            raise type(error)(  # also where it is no damage, but of a newer mfmd
                f"{error}; nothing was rolled back: `mfmd checkpoints verify` says which versions are intact, and "
                "`mfmd promote N` serves another of them"
            ) from error
        if to is not None and not state.is_behind(to) and (serving is not None or to != state.serves_last):
            before = f"did not serve before version {state.serves_last}"
            raise NotEarlier(f"version {to} {before}; nothing was rolled back: `mfmd promote {to}` serves it")
        return target

    def _before(self) -> int | None:
        """Return the target of a plain rollback: from the history, or from the ref `previous` without one."""
        state, previous = self.state(), self._version_named("previous")
        return state.previous(self.versions()) or (previous if previous != state.serves_last else None)

    def _serve(
        self,
        how: Literal["promoted", "recalled", "rolled_back"],
        version: int,
        *,
        by: str,
        reason: str,
        round: int | None = None,
    ) -> Ref:
        """Write the line, then `previous`, then `serving`: between the refs the version left still serves."""
        events, left = self.history(), self.state().serves_last
        event = _event(how, version, by, reason, previous=left if left != version else None, round=round)
        before = RegistryState([*events, event]).previous(self.versions())
        with self._announced("serving", event):
            self._name_previous(before, by, reason)
            return self._refs.write("serving", version, by, reason)

    def _name_previous(self, version: int | None, by: str, reason: str) -> None:
        if version is not None:
            self._refs.write("previous", version, by, reason)
        else:
            self._refs.remove("previous")

    def _version_named(self, name: str) -> int | None:
        """Return the version that a ref names; None when it is missing or cannot be read."""
        ref = self._refs.read_or_none(name)
        return ref.version if ref else None

    @contextmanager
    def _announced(self, ref: str, event: HistoryEvent) -> Iterator[None]:
        """Write the event, then let the caller move the ref.

        When the system refuses the move (a full disk), the line is removed. Otherwise it would mark the serving version
        as rolled back.
        """
        size, named = durable.size_of(self._history), self._version_named(ref)
        self._append(event)
        try:
            yield
        except OSError:
            if self._version_named(ref) == named:
                with suppress(OSError):
                    durable.cut_file(self._history, size)
            raise

    def _append(self, event: HistoryEvent) -> None:
        durable.append_line(self._history, event.model_dump_json())

    @contextmanager
    def _writing(self) -> Iterator[None]:
        folders = (self._folders, self._refs.folder, self._pruned)
        for folder in folders:
            durable.make_directory(folder)
        with durable.exclusive_lock(self.root / ".lock"):
            for folder in folders:
                durable.remove_partials(folder)
            self.bases.remove_partials()
            self._refs.keep_spares()
            spares.keep_space_behind(self._history)
            yield


def _event(event: str, version: int | None, by: str, reason: str, **more: int | None) -> HistoryEvent:
    values = {"at": time.time(), "event": event, "version": version, "by": by, "reason": reason, **more}
    return HistoryEvent.model_validate(values)


def _require_serving(serving: Ref | None, expected: int, outcome: str) -> None:
    """Raise ServingChanged unless `expected` serves."""
    if serving is None or serving.version != expected:
        now = f"version {serving.version} serves" if serving else "no version serves"
        raise ServingChanged(f"{now}, not version {expected}; {outcome}")
