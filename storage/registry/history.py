"""Events of the registry's history, and the state of the registry that follows from them."""

from collections.abc import Collection, Iterable, Sequence
from pathlib import Path

from storage.durable.record import lines_of, parsed
from storage.errors import NewerRecord
from storage.registry.manifest import HistoryEvent

MOVES = ("promoted", "recalled", "rolled_back")
"""Events that move the serving ref."""
AGAINST = ("rejected", "inconclusive")
"""Verdicts of the gate after which a version does not serve."""
UNSERVED = 2
"""Newest versions that retention keeps of each kind that never served: candidates, and versions of an operator."""


class RegistryState:
    """What serves, what served before, and the versions not to go back to, computed once from all events.

    The line of a move is written before its ref moves. A move that a kill interrupted between the two did not happen,
    so its version did not serve. Its other effects on the version count all the same, because somebody intended them.
    """

    def __init__(self, events: Iterable[HistoryEvent], serving: int | None = None) -> None:
        """Compute the state from all events, oldest first; `serving` is the serving ref's version, None if unknown."""
        known = list(events)
        moves = _completed(known, serving)
        added = {event.version: event.round for event in known if event.event == "added" and event.version is not None}
        self.served = _stack(moves, serving)
        """Versions that served, oldest first; the last one serves. A promotion adds its version; a rollback removes
        everything after its target."""
        self.last_move = moves[-1] if moves else None
        """The promotion or rollback after which the last one serves."""
        self.rolled_back, self.turned_down, self.verdicts = _marked(known)
        """Versions that were rolled back and have not served since; versions that the gate did not accept and that
        nobody has served since; the gate's last verdict on each that it did not accept."""
        self.added = frozenset(added)
        """Versions whose addition is in the history."""
        self.candidates = frozenset(version for version, made_by in added.items() if made_by)
        """Versions that a round made."""
        self.never_served = self.added - {event.version for event in moves} - {event.previous for event in known}
        """Added versions that never served; a version whose addition the history lacks counts as one that served."""

    @property
    def serves_last(self) -> int | None:
        """Return the version that serves, according to the history."""
        return self.served[-1] if self.served else None

    def previous(self, versions: Collection[int]) -> int | None:
        """Return the target of a plain rollback: the newest of `versions` that served before the serving one.

        It skips versions that were rolled back and versions that the gate did not accept.
        """
        skipped = {self.serves_last, *self.rolled_back, *self.turned_down}
        return next(
            (version for version in reversed(self.served) if version in versions and version not in skipped), None
        )

    def is_behind(self, version: int) -> bool:
        """Return whether `version` served before the serving one; True also when the history lacks its addition."""
        return version in self.served[:-1] or version not in self.added

    def marks(self, version: int) -> list[str]:
        """Return the warnings about a version: `rolled back`, `never served`, and the gate's verdict against it."""
        marks = ["rolled back"] if version in self.rolled_back else []
        marks += ["never served"] if version in self.never_served else []
        return [*marks, self.verdicts[version]] if version in self.verdicts else marks

    def removable(self, versions: Sequence[int], protected: Collection[int], keep: int) -> list[int]:
        """Return versions that retention removes, ascending: all but the newest of each kind, and no `protected` one.

        It keeps the newest `keep` that served, and at most `UNSERVED` of each of two kinds that never did: candidates,
        and imports or source trainings. Each kind is counted by itself, so none displaces another. `versions`: those on
        disk, ascending.
        """
        others = [version for version in versions if version not in protected]
        candidates, brought = self.never_served & self.candidates, self.never_served - self.candidates
        kinds = (
            ([version for version in others if version not in self.never_served], keep),
            ([version for version in others if version in candidates], min(keep, UNSERVED)),
            ([version for version in others if version in brought], min(keep, UNSERVED)),
        )
        return sorted(version for kind, kept in kinds for version in kind[: max(0, len(kind) - kept)])


def read_history(path: Path) -> list[HistoryEvent]:
    """Return all events of `history.jsonl`, oldest first. Raises NewerRecord when a newer mfmd wrote one."""
    return list(parsed(lines_of(path), HistoryEvent, path))


def is_event(line: bytes) -> bool:
    """Return whether a line of `history.jsonl` is whole, also one of a newer mfmd."""
    try:
        return any(parsed([line], HistoryEvent, Path()))
    except NewerRecord:
        return True


def _completed(events: Iterable[HistoryEvent], serving: int | None) -> list[HistoryEvent]:
    """Return moves whose ref moved; the line after an interrupted one names the same version as before it.

    `serving`, which serves now, decides about the last move.
    """
    moves = [event for event in events if event.event in MOVES and event.version is not None]
    after = [*(event.previous for event in moves[1:]), serving]
    return [event for event, then in zip(moves, after, strict=False) if then is None or then != event.previous]


def _stack(moves: Iterable[HistoryEvent], serving: int | None) -> tuple[int, ...]:
    stack: list[int] = []
    for event in moves:
        if event.previous is not None and event.previous not in stack[-1:]:
            stack.append(event.previous)  # the line that made it serve is lost
        if event.event == "rolled_back" and event.version in stack:
            del stack[len(stack) - stack[::-1].index(event.version) :]
        elif event.version is not None:
            stack.append(event.version)
    if serving is not None and serving not in stack[-1:]:
        stack.append(serving)  # likewise
    return tuple(stack)


def _marked(events: Iterable[HistoryEvent]) -> tuple[frozenset[int], frozenset[int], dict[int, str]]:
    """Return versions rolled back, versions not accepted, and the last verdict against each version."""
    rolled_back: set[int] = set()
    verdicts: dict[int, str] = {}
    trusted: set[int] = set()
    for event in events:
        if event.event == "rolled_back" and event.previous is not None:
            rolled_back.add(event.previous)
        if event.version is None:
            continue
        if event.event in MOVES:
            rolled_back.discard(event.version)
            trusted.add(event.version)
        elif event.event in AGAINST:
            verdicts[event.version] = event.event
            trusted.discard(event.version)
    return frozenset(rolled_back), frozenset(verdicts) - trusted, verdicts
