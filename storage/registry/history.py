"""What the registry's history says: the events, who was rolled back from, who served before whom, who never did."""

from collections.abc import Collection, Iterable
from pathlib import Path

from pydantic import ValidationError

from storage.registry.manifest import HistoryEvent


def read_history(path: Path) -> list[HistoryEvent]:
    """All events of `history.jsonl`, oldest first.

    A line that does not parse is one that a crash tore: the event it announced did not happen, so it is left out.
    """
    if not path.exists():
        return []
    return [event for line in path.read_bytes().splitlines() if (event := _event(line)) is not None]


def is_event(line: bytes) -> bool:
    """Whether a line of `history.jsonl` can be read."""
    return _event(line) is not None


def rolled_back_from(events: Iterable[HistoryEvent]) -> set[int]:
    """Versions that somebody rolled back from and that nobody made serve since."""
    bad: set[int] = set()
    for event in events:
        if event.event == "rolled_back" and event.previous is not None:
            bad.add(event.previous)
        if event.event in ("rolled_back", "promoted") and event.version is not None:
            bad.discard(event.version)
    return bad


def never_served(events: Iterable[HistoryEvent], versions: Collection[int]) -> set[int]:
    """Those of `versions` that never answered anybody.

    One whose addition is not in the history counts as one that served: of a lost history nothing can be concluded.
    """
    known = list(events)
    added = {event.version for event in known if event.event == "added"}
    served = {event.version for event in completed_moves(known)}
    served |= {event.previous for event in known}  # whatever happened then: it served
    return {version for version in versions if version in added - served}


def completed_moves(events: Iterable[HistoryEvent], serving: int | None = None) -> list[HistoryEvent]:
    """Promotions and rollbacks without those that a kill cut short between the line and the ref.

    The line after such a one says that the same version as before it served. `serving`, which serves now, says it of
    the last.
    """
    moves = [event for event in events if event.event in ("promoted", "rolled_back")]
    after = [*(event.previous for event in moves[1:]), serving]
    return [event for event, then in zip(moves, after, strict=False) if then is None or then != event.previous]


def added_by_rounds(events: Iterable[HistoryEvent]) -> set[int]:
    """Versions that were the candidate of a round."""
    return {item.version for item in events if item.event == "added" and item.round and item.version is not None}


def verdicts_against(events: Iterable[HistoryEvent]) -> dict[int, str]:
    """What the gate said of versions that it did not let serve: `rejected` or `inconclusive`, the last word of each."""
    return {
        item.version: item.event
        for item in events
        if item.event in ("rejected", "inconclusive") and item.version is not None
    }


def turned_down(events: Iterable[HistoryEvent]) -> set[int]:
    """Versions that the gate did not let serve and that nobody made serve since."""
    down: set[int] = set()
    for event in events:
        if event.version is not None and event.event in ("rejected", "inconclusive"):
            down.add(event.version)
        if event.version is not None and event.event in ("promoted", "rolled_back"):
            down.discard(event.version)
    return down


def served_before(events: Iterable[HistoryEvent], target: int, usable: Collection[int]) -> int | None:
    """The newest of the `usable` versions that served before `target` did: where a further rollback leads."""
    stack = served_stack(events)
    below = stack[: len(stack) - 1 - stack[::-1].index(target)] if target in stack else stack
    return next((version for version in reversed(below) if version in usable and version != target), None)


def served_stack(events: Iterable[HistoryEvent]) -> list[int]:
    """Versions that were made to serve, the last one last.

    Promotions stack up versions; a rollback takes off everything above its target.
    """
    stack: list[int] = []
    for event in events:
        if event.version is None:
            continue
        if event.event == "rolled_back" and event.version in stack:
            del stack[len(stack) - stack[::-1].index(event.version) :]
        elif event.event in ("promoted", "rolled_back"):
            stack.append(event.version)
    return stack


def _event(line: bytes) -> HistoryEvent | None:
    try:
        return HistoryEvent.model_validate_json(line)
    except ValidationError:
        return None
