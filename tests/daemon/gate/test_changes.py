"""What an operator changes about known conditions: merge, rename, forget."""

import numpy as np
import pytest

from daemon.gate.changes import ConditionChange, apply
from daemon.gate.conditions import follow
from daemon.gate.memory import golden_frames
from storage.errors import ConditionNeeded, InvalidName, StorageError, UnknownCondition
from tests.daemon.gate.test_conditions import SETTINGS, known_after, seen

FRAMES = seen(("day", 8), ("dusk", 4), ("night", 4))
KNOWN = known_after(FRAMES)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"kind": "rename", "number": 2, "name": " "}, InvalidName, "1 to 64 printable"),
        ({"kind": "rename", "number": 2, "name": "a\nb"}, InvalidName, "printable"),
        ({"kind": "rename", "number": 2, "name": "x" * 65}, InvalidName, "64"),
        ({"kind": "rename", "number": 2, "name": "condition-1"}, InvalidName, "condition 1 has it"),
        ({"kind": "rename", "number": 2, "name": "condition-9"}, InvalidName, "new conditions get names like it"),
        ({"kind": "rename", "number": 7, "name": "fog"}, UnknownCondition, "no condition 7.*1, 2, 3"),
        ({"kind": "merge", "number": 2, "into": 2}, ConditionNeeded, "into itself"),
        ({"kind": "merge", "number": 2, "into": 9}, UnknownCondition, "no condition 9"),
        ({"kind": "forget", "number": 9}, UnknownCondition, "no condition 9"),
    ],
)
def test_a_change_that_cannot_be_is_refused(change: dict[str, object], error: type[StorageError], says: str) -> None:
    with pytest.raises(error, match=says):
        apply(KNOWN, ConditionChange.model_validate(change), newest=16)


def test_nothing_can_change_before_a_condition_is_known() -> None:
    with pytest.raises(UnknownCondition, match="none is known yet"):
        apply(None, ConditionChange(kind="forget", number=1), newest=0)


def test_the_labelled_and_the_only_condition_stay() -> None:
    first = KNOWN.conditions[0]
    labelled = (first.model_copy(update={"labelled": True}), *KNOWN.conditions[1:])
    with pytest.raises(ConditionNeeded, match="labelled source"):
        apply(KNOWN.model_copy(update={"conditions": labelled}), ConditionChange(kind="forget", number=1), newest=16)
    with pytest.raises(ConditionNeeded, match="the only one"):
        apply(KNOWN.model_copy(update={"conditions": (first,)}), ConditionChange(kind="forget", number=1), newest=16)


def test_a_name_and_a_merge_survive_the_next_look() -> None:
    named = apply(KNOWN, ConditionChange(kind="rename", number=2, name="Dämmerung"), newest=16)
    one = apply(named, ConditionChange(kind="merge", number=3, into=2), newest=16)
    after = follow(one, FRAMES, SETTINGS, 1, 3)
    assert [(item.number, item.name, item.frames) for item in after.conditions] == [
        (1, "condition-1", 8), (2, "Dämmerung", 8),
    ]  # fmt: skip
    assert after.current == one.current == 2 and one.cameras == after.cameras == {"": 2}


def test_what_is_forgotten_opens_again_from_new_frames_only() -> None:
    gone = apply(KNOWN, ConditionChange(kind="forget", number=3), newest=int(FRAMES.ids[-1]))
    assert (gone.current, gone.burst, gone.cameras) == (None, (), {"": None})
    after = follow(gone, FRAMES, SETTINGS, 1, 3)
    assert [item.number for item in after.conditions] == [1, 2] and after.current is None
    more = seen(("day", 8), ("dusk", 4), ("night", 8))
    few = more.only(np.arange(len(more.ids)) < 19)
    assert [item.number for item in follow(gone, few, SETTINGS, 1, 3).conditions] == [1, 2], "three new frames"
    assert [item.number for item in follow(gone, more, SETTINGS, 1, 3).conditions] == [1, 2, 4]


def test_golden_frames_take_at_most_half_of_the_buffer(make_settings) -> None:
    raw = make_settings().buffer.height * make_settings().buffer.width * 3
    for buffer, most in (
        ({"capacity_frames": 100, "max_bytes": 0}, 16),
        ({"capacity_frames": 30, "max_bytes": 0}, 5),
        ({"capacity_frames": 100, "max_bytes": 24 * raw}, 4),
    ):
        assert golden_frames(make_settings(buffer=buffer), KNOWN) == most, buffer
