"""Check and repair the whole state directory."""

import shutil
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from storage import durable
from storage.buffer import files as buffer_files
from storage.checking.catalog import check_catalog
from storage.checking.gate import check_gate
from storage.checking.problem import REPAIR, Problem, Scope, newer
from storage.checking.registry import check_history, check_refs, check_versions
from storage.checking.rounds import check_rounds
from storage.checking.source import check_source
from storage.directory.format import read_format
from storage.directory.restore import finish_restore
from storage.errors import DurabilityLost, NewerRecord, StorageError
from storage.layout import StateLayout

PASSES = 4
"""Number of passes of repair: one repair may reveal another problem (a removed frame leaves its observation)."""


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair_state` did."""

    repaired: list[Problem]
    """Problems that were repaired."""
    left: list[Problem]
    """Problems that remain; only a person can repair them."""


def check_state(layout: StateLayout, *, read_data: bool = False) -> list[Problem]:
    """Return every problem of a state directory; changes nothing, takes no lock, works beside a running daemon.

    If a process writes there meanwhile, leftovers are not reported, because its unfinished files look like leftovers.
    An error then counts when it is seen twice. `read_data` also reads every pixel and hashes every weight. An empty
    directory has no problem.
    """
    scope = Scope(layout, read_data)
    before = _taken(layout)
    live = _live(layout)
    found = list(_examine(scope))
    if not (live or _live(layout)) and _taken(layout) == before:
        return found
    errors = [problem for problem in found if problem.severity == "error"]
    again = set(_examine(scope)) if errors else set()
    return [problem for problem in errors if problem in again]


def repair_state(layout: StateLayout, *, read_data: bool = False) -> Repair:
    """Repair what can be repaired; never removes a version, nor a frame whose pixels are intact.

    Raises AlreadyRunning while a daemon or a round works there, DurabilityLost when the disk fails meanwhile.
    """
    if not layout.root.is_dir():
        return Repair([], [])
    with layout.lock():
        finish_restore(layout)
        with buffer_files.claim(layout):
            return _repair(Scope(layout, read_data))


def _repair(scope: Scope) -> Repair:
    repaired: list[Problem] = []
    problems = list(_examine(scope))
    for _ in range(PASSES):
        before = {problem for problem in problems if _repaired(problem)}
        if not before:
            break
        problems = list(_examine(scope))
        repaired += sorted(before - set(problems), key=lambda problem: (problem.code, problem.path))
    return Repair(repaired, problems)


def _repaired(problem: Problem) -> bool:
    if problem.repair is None:
        return False
    try:
        problem.repair()
    except DurabilityLost:
        raise
    except (StorageError, OSError):
        return False  # it is found again, and reported as left
    return True


def _examine(scope: Scope) -> Iterator[Problem]:
    path = scope.layout.format_file
    try:
        read_format(scope.layout)
    except NewerRecord as error:
        yield newer(path, error)
        return  # whatever follows could be misread
    except StorageError as error:
        remedy = f"{REPAIR} removes it, the next `mfmd run` writes it again"
        yield Problem("format_damaged", path, str(error), remedy, partial(durable.remove_file, path))
    checks = (check_catalog, check_versions, check_history, check_refs, check_rounds, check_source, check_gate)
    for check in (*checks, _check_leftovers):
        try:
            yield from check(scope)
        except NewerRecord:
            continue  # the history's: `check_history` reports it, and nothing that follows from it is known
        except OSError as error:
            yield Problem("unreadable", scope.layout.root, str(error), "check the disk and permissions")


def _check_leftovers(scope: Scope) -> Iterator[Problem]:
    """Find unfinished files of a killed process, in every folder where files first appear under a temporary name."""
    resized = scope.layout.root / buffer_files.RESIZED
    if resized.is_dir():
        remedy = f"{REPAIR} finishes it, or the daemon's next start does"
        yield Problem("unfinished", resized, "a resize of the buffer was killed", remedy)
    for folder in _folders(scope.layout):
        for path in sorted(folder.glob(f"*{durable.PARTIAL}")):
            remedy = f"{REPAIR} removes it, or the next run of its owner does"
            yield Problem("unfinished", path, "leftover of a killed process", remedy, partial(_remove, path))


def _folders(layout: StateLayout) -> Iterator[Path]:
    yield from (layout.root, layout.buffer, layout.frames_zarr, layout.frames_zarr / buffer_files.ARRAY)
    yield from (layout.source, layout.canary, *layout.canary_sets, layout.rounds, layout.checkpoints)
    yield from (layout.checkpoints / name for name in ("versions", "refs", "pruned", "bases"))
    yield from sorted((layout.checkpoints / "versions").glob("[0-9]*"))
    yield from (layout.comparisons, *sorted(layout.comparisons.glob("[0-9]*")))
    yield from (layout.shadow, *sorted(layout.shadow.glob("[0-9]*")))
    for round in sorted(layout.rounds.glob("[0-9]*")):
        yield from (round, round / "state")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _live(layout: StateLayout) -> bool:
    return any(durable.is_locked(path) for path in _locks(layout))


def _taken(layout: StateLayout) -> list[int]:
    """Return when each lock was last taken (ns): its holder writes to it. So a writer that came and left is seen."""
    found = list[int]()
    for path in _locks(layout):
        with suppress(FileNotFoundError):
            found.append(path.stat().st_mtime_ns)
    return found


def _locks(layout: StateLayout) -> list[Path]:
    folders = (layout.buffer, layout.checkpoints, layout.source, *layout.canary_sets)
    return [layout.lock_file, *(folder / ".lock" for folder in folders)]
