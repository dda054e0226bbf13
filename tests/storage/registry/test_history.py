from pathlib import Path

import pytest

from storage.registry.history import RegistryState, read_history
from storage.registry.manifest import HistoryEvent


def move(kind: str, version: int, previous: int | None = None) -> HistoryEvent:
    return HistoryEvent.model_validate(
        {"at": 1.0, "event": kind, "version": version, "previous": previous, "by": "gate"}
    )


def test_torn_and_foreign_lines_are_left_out(tmp_path: Path):
    path = tmp_path / "history.jsonl"
    assert read_history(path) == []
    good = move("promoted", 1).model_copy(update={"reason": "a\u2028b\x85c"})
    line = good.model_dump_json()
    path.write_text(f'{line}\n{{"at": 2, "eve\n{line}\n\n{line[:20]}')
    assert read_history(path) == [good, good]


def test_a_version_is_bad_until_somebody_makes_it_serve_again():
    events = [move("promoted", 1), move("promoted", 2, 1), move("rolled_back", 1, 2)]
    for more, bad in (
        ([], {2}),
        ([move("promoted", 2, 1)], set()),
        ([move("rolled_back", 2, 1)], {1}),
        ([move("rejected", 4), move("added", 5)], {2}),
    ):
        assert RegistryState([*events, *more]).rolled_back == bad
    assert RegistryState([move("rolled_back", 1, None)]).rolled_back == set()


@pytest.mark.parametrize(
    ("moves", "served", "previous"),
    [
        ([], (), None),
        ([("promoted", 1)], (1,), None),
        ([("promoted", 1), ("promoted", 2), ("promoted", 3)], (1, 2, 3), 2),
        ([("promoted", 1), ("promoted", 2), ("rolled_back", 1)], (1,), None),
        ([("promoted", 1), ("promoted", 2), ("rolled_back", 1), ("promoted", 3)], (1, 3), 1),
        ([("promoted", 1), ("promoted", 2), ("rolled_back", 1), ("promoted", 3), ("promoted", 4)], (1, 3, 4), 3),
        ([("promoted", 1), ("promoted", 2), ("promoted", 3), ("rolled_back", 1), ("promoted", 4)], (1, 4), 1),
        # By hand: what is left stays what a rollback leads to, also when a version serves again.
        ([("promoted", 1), ("promoted", 2), ("promoted", 1)], (1, 2, 1), 2),
        ([("promoted", 1), ("promoted", 2), ("promoted", 1), ("rolled_back", 2)], (1, 2), None),
        ([("promoted", 1), ("promoted", 2), ("rolled_back", 1), ("promoted", 2)], (1, 2), 1),
    ],
)
def test_what_served_and_where_a_rollback_leads(
    moves: list[tuple[str, int]], served: tuple[int, ...], previous: int | None
):
    events: list[HistoryEvent] = []
    for kind, version in moves:
        events.append(move(kind, version, RegistryState(events).serves_last))
    state = RegistryState(events)
    assert (state.served, state.previous(range(10))) == (served, previous)
    assert state.last_move == (events[-1] if events else None)


def test_versions_that_are_gone_are_passed_over():
    state = RegistryState([move("promoted", version) for version in (1, 2, 3, 4)])
    assert state.previous([1, 4]) == 1
    assert state.previous([4]) is None


def test_a_move_whose_line_is_lost_leaves_what_it_made_serve():
    assert RegistryState([move("promoted", 1), move("promoted", 4, 3)]).served == (1, 3, 4)
    assert RegistryState([move("rolled_back", 2, 3)]).served == (3, 2)
    assert RegistryState([move("promoted", 1)], 5).served == (1, 5)
    assert RegistryState([], 5).served == (5,)


def test_what_served_before_is_behind_and_nothing_else():
    events = [move("added", version) for version in (1, 2, 3, 4)] + [move("promoted", 1), move("promoted", 2, 1)]
    state = RegistryState([*events, move("promoted", 3, 2), move("rolled_back", 2, 3)])
    assert [version for version in range(1, 6) if state.is_behind(version)] == [1, 5], "5: its history is lost"
