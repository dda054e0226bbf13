"""Check and repair the whole state directory."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from storage import durable
from storage.buffer import files as buffer_files
from storage.checking.catalog import check_catalog
from storage.checking.leftovers import check_leftovers
from storage.checking.observed import check_observations
from storage.checking.pixels import check_pixels
from storage.checking.problem import Problem, Scope, Severity
from storage.checking.refs import check_refs
from storage.checking.registry import check_history, check_versions
from storage.checking.rounds import check_leases, check_rounds
from storage.checking.source import check_source
from storage.errors import DurabilityLost, StorageError
from storage.layout import StateLayout

PASSES = 4
"""Number of passes of repair: one repair may reveal another problem (a removed frame leaves its observation)."""

PARTS: tuple[Callable[[Scope], Iterable[Problem]], ...] = (
    check_catalog,
    check_pixels,
    check_observations,
    check_versions,
    check_history,
    check_refs,
    check_rounds,
    check_leases,
    check_source,
    check_leftovers,
)


@dataclass(frozen=True, slots=True)
class Repair:
    """What `repair_state` did."""

    mended: list[Problem]
    """Problems that were repaired."""
    left: list[Problem]
    """Problems that remain; only a person can repair them."""


def check_state(layout: StateLayout, *, read_data: bool = False) -> list[Problem]:
    """Return every problem of a state directory; changes nothing, takes no lock, works beside a running daemon.

    While a process writes there, leftovers are not reported, because its unfinished files look like leftovers. An error
    then counts when it is seen twice. `read_data` also reads every pixel and hashes every weight. An empty directory
    has no problem.
    """
    scope = Scope(layout, read_data)
    live = _live(layout)
    found = list(_examine(scope))
    if not (live or _live(layout)):
        return found
    errors = [problem for problem in found if problem.severity == Severity.ERROR]
    again = set(_examine(scope)) if errors else set()
    return [problem for problem in errors if problem in again]


def repair_state(layout: StateLayout, *, read_data: bool = False) -> Repair:
    """Repair what can be repaired; never removes a version, nor a frame whose pixels are intact.

    Raises AlreadyRunning while a daemon or a round works there, DurabilityLost when the disk fails meanwhile.
    """
    if not layout.root.is_dir():
        return Repair([], [])
    mended: list[Problem] = []
    with layout.lock(), buffer_files.claim(layout):
        scope = Scope(layout, read_data)
        problems = list(_examine(scope))
        for _ in range(PASSES):
            before = {problem for problem in problems if problem.repairable}
            if not before:
                break
            failed = {problem for problem in problems if problem in before and not _mend(problem)}
            problems = list(_examine(scope))
            mended += sorted(before - failed - set(problems), key=lambda problem: (problem.code, problem.path))
            if failed >= before:
                break
    return Repair(mended, problems)


def _mend(problem: Problem) -> bool:
    assert problem.mend is not None
    try:
        problem.mend()
    except DurabilityLost:
        raise
    except (StorageError, OSError):
        return False  # it is found again, and told as left
    return True


def _examine(scope: Scope) -> Iterator[Problem]:
    for part in PARTS:
        try:
            yield from part(scope)
        except OSError as error:
            yield Problem("unreadable", scope.layout.root, str(error), "check the disk and permissions")


def _live(layout: StateLayout) -> bool:
    locks = (layout.lock_file, layout.buffer / ".lock", layout.checkpoints / ".lock", layout.source / ".lock")
    return any(durable.is_locked(path) for path in locks)
