"""Check whether versions match their manifests, refs name intact versions, and the history can be read."""

from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

from storage import durable
from storage.checking.problem import REPAIR, Problem, Scope, newer
from storage.durable.record import lines_of
from storage.errors import CorruptCheckpoint, NewerRecord, StorageError, UnknownVersion
from storage.registry.history import is_event, read_history
from storage.registry.refs import Refs, pin_name
from storage.registry.registry import CheckpointRegistry
from storage.registry.versions import read_manifest

ELSE = "restore its files from a backup; `mfmd promote N` serves another version"
TORN = "history.torn"


def check_versions(scope: Scope) -> Iterator[Problem]:
    """Return versions that differ from what was published, unreadable kept manifests, and bases of no version."""
    registry, intact = CheckpointRegistry(scope.layout.checkpoints), set[str]()
    for version in registry.versions():
        try:
            damage = _damage(registry, version, scope.read_data, intact)
        except NewerRecord as error:
            yield newer(registry.folder(version), error)
            continue
        if damage:
            yield Problem("version_damaged", registry.folder(version), damage, ELSE)
    for path in sorted((scope.layout.checkpoints / "pruned").glob("[0-9]*.json")):
        try:
            read_manifest(path)
        except NewerRecord as error:
            yield newer(path, error)
        except CorruptCheckpoint:
            detail = "the manifest of a removed version cannot be read: the released model may be unknown"
            yield Problem("pruned_damaged", path, detail, "restore it from a backup")
    for path in registry.unused_bases():
        remedy = f"nothing, because retention removes it; {REPAIR} removes it now"
        yield Problem("base_unused", path, "no version names this base", remedy, registry.remove_unused_bases)


def check_refs(scope: Scope) -> Iterator[Problem]:
    """Return refs that cannot be read, name no version, or are missing."""
    registry = CheckpointRegistry(scope.layout.checkpoints)
    registry.history()  # repairs follow from it
    because = {"by": "repair", "reason": "mfmd check --repair"}
    restore, no_shadow = partial(registry.restore, **because), partial(registry.set_shadow, None, **because)
    yield from _ref(registry, "serving", restore, REPAIR)
    yield from _serving(registry, scope.read_data, restore)
    yield from _ref(registry, "previous", restore, REPAIR)
    yield from _ref(registry, "shadow", no_shadow, f"{REPAIR} removes it")
    for version in registry.pins():  # the name of a pin gives its version, whatever the file contains
        path = registry.ref_path(pin_name(version))
        if version not in registry.versions():
            unpin = partial(registry.unpin, version, by="repair", reason="the version does not exist")
            detail = f"pins version {version}, which does not exist"
            yield Problem("ref_dangling", path, detail, f"{REPAIR} removes the pin", unpin)
            continue
        try:
            Refs(path.parent).read(path.name)
        except NewerRecord as error:
            yield newer(path, error)
        except StorageError:
            pin = partial(registry.pin, version, by="repair", reason="the ref was damaged")
            yield Problem("ref_damaged", path, "cannot be read", f"{REPAIR} writes it again", pin)


def check_history(scope: Scope) -> Iterator[Problem]:
    """Return lines of the history that cannot be read: their events did not happen."""
    path = scope.layout.checkpoints / "history.jsonl"
    try:
        read_history(path)
    except NewerRecord as error:
        yield newer(path, error)
        return
    bad = [number for number, line in enumerate(lines_of(path), 1) if not is_event(line)]
    if bad:
        detail = f"{len(bad)} lines cannot be read: {', '.join(map(str, bad[:5]))}"
        remedy = f"nothing, because such lines are skipped; {REPAIR} moves them to {TORN}"
        yield Problem("history_torn", path, detail, remedy, partial(_sort_out, path))


def _damage(registry: CheckpointRegistry, version: int, read_data: bool, intact: set[str] | None = None) -> str:
    try:
        registry.verify(version, content=read_data, intact=intact)
    except NewerRecord:
        raise
    except (CorruptCheckpoint, UnknownVersion) as error:
        return str(error)
    return ""


def _ref(registry: CheckpointRegistry, name: str, repair: Callable[[], object], remedy: str) -> Iterator[Problem]:
    path = registry.ref_path(name)
    try:
        ref = Refs(path.parent).read(name)
    except NewerRecord as error:
        yield newer(path, error)
        return
    except StorageError as error:
        yield Problem("ref_damaged", path, str(error), remedy, repair)
        return
    if ref is not None and ref.version not in registry.versions():
        yield Problem("ref_dangling", path, f"points at version {ref.version}, which does not exist", remedy, repair)


def _serving(registry: CheckpointRegistry, read_data: bool, restore: Callable[[], object]) -> Iterator[Problem]:
    path = registry.ref_path("serving")
    refs = Refs(path.parent)
    serving, damage = refs.read_or_none("serving"), ""
    if serving is not None and serving.version in registry.versions():
        with suppress(NewerRecord):  # `check_versions` reports it
            damage = _damage(registry, serving.version, read_data)
        if damage:
            remedy = f"{REPAIR} serves the last intact version; restore version {serving.version} from a backup"
            yield Problem("serving_damaged", path, damage, remedy, restore)
    elif not refs.exists("serving") and (served := registry.state().serves_last) is not None:
        yield Problem("serving_missing", path, f"missing, but version {served} was promoted", REPAIR, restore)


def _sort_out(path: Path) -> None:
    """Save the partial lines first, then write the history without them."""
    for line in lines_of(path):
        if not is_event(line):
            durable.append_line(path.with_name(TORN), line.decode(errors="backslashreplace"))
    durable.write_text(path, "".join(f"{event.model_dump_json()}\n" for event in read_history(path)))
