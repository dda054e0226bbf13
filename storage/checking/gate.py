"""Check whether what the gate remembers can be read, and agrees with the buffer and the registry."""

from collections.abc import Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path

from storage import durable
from storage.buffer.catalog import Catalog
from storage.checking.problem import REPAIR, Problem, Scope, change, newer
from storage.durable.record import Record, read_record
from storage.errors import CorruptCheckpoint, NewerRecord, StorageError, UnknownVersion
from storage.gate.comparisons import ComparisonStore
from storage.gate.conditions import Condition, Conditions, ConditionStore
from storage.gate.drift import Drift
from storage.gate.notified import Notified
from storage.gate.pause import Pause
from storage.gate.probation import Probation
from storage.gate.recall import Recall
from storage.registry.registry import CheckpointRegistry
from storage.rounds.device_time import DeviceTime
from storage.rounds.refusal import Refusal

AGAIN = f"{REPAIR} removes it; the next `mfmd run` builds it again from the observed frames and the history"


def check_gate(scope: Scope) -> Iterator[Problem]:
    """Return problems of the known conditions, of the rules' records, and of comparisons."""
    store = ConditionStore(scope.layout.conditions)
    try:
        known = store.read()
    except NewerRecord as error:
        yield newer(store.path, error)
    except StorageError as error:
        yield Problem("conditions_damaged", store.path, str(error), AGAIN, partial(durable.remove_file, store.path))
    else:
        if known is not None:
            yield from _versions(scope, known)
            yield from _frames(scope, known)
    yield from _records(scope)
    yield from _comparisons(scope)


def _versions(scope: Scope, known: Conditions) -> Iterator[Problem]:
    registry = CheckpointRegistry(scope.layout.checkpoints)
    whole = {item.best: _whole(registry, item.best) for item in known.conditions if item.best is not None}
    for item in known.conditions:
        if item.best is None or whole[item.best]:
            continue
        else_best = known.released if _whole(registry, known.released) and item.best != known.released else None
        update = {"best": else_best, "best_reason": f"version {item.best} is gone or damaged"}
        detail = f"version {item.best}, best in condition {item.number} ({item.name}), does not exist or is damaged"
        yield Problem(
            "condition_version",
            scope.layout.conditions,
            detail,
            f"{REPAIR} lets the released version take its place; or restore version {item.best} from a backup",
            partial(_write, scope, item.number, update),
        )


def _whole(registry: CheckpointRegistry, version: int) -> bool:
    try:
        registry.verify(version, content=False)
    except NewerRecord:
        return True
    except (CorruptCheckpoint, UnknownVersion):
        return False
    return True


def _frames(scope: Scope, known: Conditions) -> Iterator[Problem]:
    """Compare golden frames with the buffer; where the catalog cannot be read, `check_catalog` reports that."""
    try:
        with closing(Catalog.open(scope.layout.catalog, writable=False)) as catalog:
            frames, kept = {record.id for record in catalog.records()}, catalog.kept()
    except StorageError:
        return
    for item in known.conditions:
        if lost := [frame for frame in item.golden if frame not in frames]:
            detail = f"condition {item.number} ({item.name}) has golden frames that the buffer lost: {_some(lost)}"
            stay = {"golden": tuple(frame for frame in item.golden if frame in frames)}
            repair = partial(_write, scope, item.number, stay)
            remedy = f"{REPAIR}, or the next `mfmd run`, chooses others"
            yield Problem("golden_missing", scope.layout.conditions, detail, remedy, repair)
    golden = {frame: item.number for item in known.conditions for frame in item.golden}
    if stale := [frame for frame, condition in kept.items() if golden.get(frame) != condition]:
        detail = f"frames are kept for a condition that does not have them, or does not exist: {_some(stale)}"
        statement = f"DELETE FROM kept WHERE frame IN ({', '.join(map(str, stale))})"
        repair = partial(change, scope.layout.catalog, statement)
        yield Problem("kept_stale", scope.layout.catalog, detail, f"{REPAIR}, or the next `mfmd run`", repair)


def _records(scope: Scope) -> Iterator[Problem]:
    layout = scope.layout
    kinds: dict[Path, type[Record]] = {layout.recall: Recall, layout.probation: Probation, layout.drift: Drift}
    kinds |= {layout.device_time: DeviceTime, layout.refusal: Refusal, layout.notified: Notified}
    kinds |= {layout.pause: Pause}
    for path, kind in kinds.items():
        try:
            read_record(path, kind)
        except NewerRecord as error:
            yield newer(path, error)
        except StorageError as error:
            if path == layout.pause:  # a repair must not resume
                yield Problem("pause_damaged", path, str(error), "mfmd pause writes it again, mfmd resume removes it")
                continue
            remedy = f"{REPAIR} removes it; what writes it starts anew"
            yield Problem("gate_record_damaged", path, str(error), remedy, partial(durable.remove_file, path))


def _comparisons(scope: Scope) -> Iterator[Problem]:
    store = ComparisonStore(scope.layout.comparisons)
    for path in sorted(store.root.glob("[0-9]*")):
        try:
            detail = "" if store.request(int(path.name)) else "has no request: the daemon was killed while it asked"
            store.scores(int(path.name))
        except NewerRecord as error:
            yield newer(path, error)
            continue
        except (StorageError, ValueError) as error:
            detail = str(error)
        if detail:
            remedy = f"{REPAIR} removes it; the gate asks again"
            yield Problem("comparison_stale", path, detail, remedy, partial(durable.retire_directory, path))


def _write(scope: Scope, number: int, update: Mapping[str, object]) -> None:
    """Change one condition of the file as it is now: an earlier repair may have changed another one."""
    store = ConditionStore(scope.layout.conditions)
    known = store.read()
    assert known is not None

    def changed(item: Condition) -> Condition:
        return item.model_copy(update=update) if item.number == number else item

    store.write(known.model_copy(update={"conditions": tuple(map(changed, known.conditions))}))


def _some(frames: list[int]) -> str:
    return ", ".join(map(str, frames[:5])) + (f" and {len(frames) - 5} more" if len(frames) > 5 else "")
