"""Which versions may go: those that served are there to roll back to, and the others must not crowd them out."""

from collections.abc import Collection, Iterable, Sequence

from storage.registry.history import added_by_rounds, never_served
from storage.registry.manifest import HistoryEvent

UNSERVED = 2
"""Newest versions kept of those that never served: so many candidates, and so many that an operator brought."""


def removable(
    versions: Sequence[int], protected: Collection[int], events: Iterable[HistoryEvent], keep: int
) -> list[int]:
    """Versions to remove, ascending: of those that are not `protected`, all but the newest of each kind.

    Kept are the newest `keep` that served, and at most `UNSERVED` of each of two kinds that never did: candidates, and
    what was imported or trained on source. Each kind is counted by itself, so none pushes out another. `versions`:
    those on disk, ascending.
    """
    known = list(events)
    unserved, candidates = never_served(known, versions), added_by_rounds(known)
    others = [version for version in versions if version not in protected]
    kinds = (
        ([version for version in others if version not in unserved], keep),
        ([version for version in others if version in unserved & candidates], min(keep, UNSERVED)),
        ([version for version in others if version in unserved - candidates], min(keep, UNSERVED)),
    )
    return sorted(version for kind, kept in kinds for version in kind[: max(0, len(kind) - kept)])
