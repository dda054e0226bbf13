"""Check whether every version matches its manifest, and the history can be read."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from storage import durable
from storage.checking.catalog import REPAIR
from storage.checking.problem import Problem, Scope
from storage.errors import CorruptCheckpoint, UnknownVersion
from storage.registry.history import is_event, read_history
from storage.registry.manifest import Manifest
from storage.registry.registry import CheckpointRegistry

ELSE = "restore its files from a backup; `mfmd promote N` serves another version"
TORN = "history.torn"


def check_versions(scope: Scope) -> Iterator[Problem]:
    """Return versions whose manifest or files differ from the published ones, and unreadable kept manifests."""
    registry = CheckpointRegistry(scope.layout.checkpoints)
    for version in registry.versions():
        damage = damage_of_version(registry, version, read_data=scope.read_data)
        if damage:
            yield Problem("version_damaged", registry.weights_path(version).parent, damage, ELSE)
    for path in sorted((scope.layout.checkpoints / "pruned").glob("[0-9]*.json")):
        try:
            Manifest.model_validate_json(path.read_bytes())
        except ValidationError:
            detail = "the manifest of a removed version cannot be read: the released model may be unknown"
            yield Problem("pruned_damaged", path, detail, "restore it from a backup")


def damage_of_version(registry: CheckpointRegistry, version: int, *, read_data: bool) -> str:
    """Return what is wrong with a version; empty when it is intact. Without `read_data` only sizes are compared."""
    try:
        registry.verify(version, content=read_data)
    except (CorruptCheckpoint, UnknownVersion) as error:
        return str(error)
    return ""


def check_history(scope: Scope) -> Iterator[Problem]:
    """Return lines of the history that cannot be read: their events did not happen."""
    path = scope.layout.checkpoints / "history.jsonl"
    lines = path.read_bytes().splitlines() if path.exists() else []
    bad = [number for number, line in enumerate(lines, 1) if not is_event(line)]
    if bad:
        detail = f"{len(bad)} lines cannot be read: {', '.join(map(str, bad[:5]))}"
        remedy = f"nothing, because such lines are skipped; {REPAIR} moves them to {TORN}"
        yield Problem("history_torn", path, detail, remedy, partial(_sort_out, path))


def _sort_out(path: Path) -> None:
    """Save the partial lines first, then write the history without them."""
    for line in path.read_bytes().splitlines():
        if not is_event(line):
            durable.append_line(path.with_name(TORN), line.decode(errors="backslashreplace"))
    durable.write_text(path, "".join(f"{event.model_dump_json()}\n" for event in read_history(path)))
