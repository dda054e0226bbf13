"""Check whether round folders can be read, training states are intact, and only active rounds lease frames."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from storage import durable
from storage.buffer.catalog import Catalog
from storage.checking.problem import REPAIR, Problem, Scope, change, newer
from storage.errors import CorruptCheckpoint, NewerRecord, StorageError
from storage.registry.registry import CheckpointRegistry
from storage.registry.weight_changes import tensor_headers
from storage.rounds.folder import RoundFolder, RoundStore
from storage.rounds.verdict import AT_WORK

RECORDS: tuple[tuple[str, Callable[[RoundFolder], object]], ...] = (
    ("round.json", RoundFolder.record),
    ("spec.json", RoundFolder.spec),
    ("scores.json", RoundFolder.scores),
    ("verdict.json", RoundFolder.verdict),
)

HEADER_BYTES = 1024 * 1024
"""More than the header of a safetensors file has."""


def check_rounds(scope: Scope) -> Iterator[Problem]:
    """Return rounds with unreadable or contradictory records, and damaged training states."""
    store, registry = RoundStore(scope.layout.rounds), CheckpointRegistry(scope.layout.checkpoints)
    known = registry.given()
    for number in store.numbers():
        folder = store.folder(number)
        damage = list(_damages(folder, number))
        yield from damage
        if not damage:
            yield from _verdict(folder, known)
        yield from _states(folder)


def check_leases(scope: Scope, catalog: Catalog) -> Iterator[Problem]:
    """Return frames that are leased to rounds that will not continue."""
    store = RoundStore(scope.layout.rounds)
    for number in catalog.leases():
        if why := _over(store, number):
            repair = partial(change, catalog.path, "DELETE FROM leases WHERE round = ?", values=(number,))
            detail, remedy = f"frames are kept for round {number}, which {why}", f"{REPAIR}, or the next `mfmd run`"
            yield Problem("lease_stale", catalog.path, detail, remedy, repair)


def _damages(folder: RoundFolder, number: int) -> Iterator[Problem]:
    remedy = "restore it from a backup, or remove the round's folder; the round counts as failed"
    for name, read in RECORDS:
        try:
            record = read(folder)
        except NewerRecord as error:
            yield newer(folder.path / name, error)
            continue
        except StorageError as error:
            yield Problem("round_damaged", folder.path / name, str(error), remedy)
            continue
        said = getattr(record, "round", number)
        if said != number:
            yield Problem("round_damaged", folder.path / name, f"names round {said}", remedy)


def _verdict(folder: RoundFolder, known: set[int]) -> Iterator[Problem]:
    verdict = folder.verdict()
    if verdict is not None and verdict.version is not None and verdict.version not in known:
        detail = f"the candidate became version {verdict.version}, which is not in the registry"
        yield Problem("round_version", folder.path / "verdict.json", detail, "restore the registry from a backup")


def _states(folder: RoundFolder) -> Iterator[Problem]:
    for step in folder.states.steps():
        path = folder.states.root / f"{step:06d}"
        files = [file for file in sorted(path.rglob("*")) if file.is_file()]
        damage = next(filter(None, map(_damage, files)), "") if files else "empty"
        if damage:
            remedy = f"{REPAIR} removes it; the round starts from the state before it, or without one"
            yield Problem("training_state", path, damage, remedy, partial(durable.retire_directory, path))


def _damage(path: Path) -> str:
    """Return what is wrong with a file of a training state; decodes no tensor. Raises OSError."""
    try:
        if path.suffix == ".safetensors":
            with path.open("rb") as file:
                file.read(HEADER_BYTES)  # raises OSError where a file that is mapped into memory would kill the process
            tensor_headers(path)
        elif path.suffix == ".json":
            json.loads(path.read_bytes())
    except CorruptCheckpoint as error:
        if isinstance(error.__cause__, OSError):  # no damage: nothing to remove
            raise error.__cause__ from error
        return str(error)
    except ValueError as error:
        return f"{path.name}: not JSON: {error}"
    return ""


def _over(store: RoundStore, number: int) -> str:
    """Return why a round does not continue; empty when it runs or may continue."""
    if number not in store.numbers():
        return "does not exist"
    latest = store.latest()
    if latest is not None and latest.number != number:
        return f"is older than round {latest.number}"
    try:
        return "" if store.folder(number).record().stage in AT_WORK else "no longer needs one"
    except NewerRecord:
        return ""
    except StorageError:
        return "is damaged"
