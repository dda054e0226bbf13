from pathlib import Path

import pytest

from storage.registry.history import read_history, rolled_back_from, served_before
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
    assert rolled_back_from(events) == {2}
    assert rolled_back_from([*events, move("promoted", 2, 1)]) == set()
    assert rolled_back_from([*events, move("rolled_back", 2, 1)]) == {1}
    assert rolled_back_from([move("rolled_back", 1, None), move("rejected", 4), move("added", 5)]) == set()


@pytest.mark.parametrize(
    ("moves", "target", "before"),
    [
        ([("promoted", 1), ("promoted", 2), ("promoted", 3)], 2, 1),
        ([("promoted", 1), ("promoted", 2)], 1, None),
        ([("promoted", 1), ("promoted", 2), ("rolled_back", 1), ("promoted", 3)], 1, None),
        ([("promoted", 1), ("promoted", 2), ("rolled_back", 1), ("promoted", 3), ("promoted", 4)], 3, 1),
        ([("promoted", 1), ("promoted", 2), ("promoted", 3), ("rolled_back", 1), ("promoted", 4)], 4, 1),
        ([("promoted", 1), ("promoted", 3)], 2, 3),
        ([], 1, None),
    ],
)
def test_who_served_before(moves: list[tuple[str, int]], target: int, before: int | None):
    events = [move(kind, version) for kind, version in moves]
    assert served_before(events, target, range(10)) == before


def test_versions_that_are_gone_are_passed_over():
    events = [move("promoted", version) for version in (1, 2, 3, 4)]
    assert served_before(events, 4, [1, 4]) == 1
    assert served_before(events, 4, [4]) is None
