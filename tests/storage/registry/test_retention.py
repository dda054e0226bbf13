"""Which versions retention removes, and that no crowd of candidates that never served costs one that did."""

from collections.abc import Callable
from pathlib import Path

import pytest

from storage.errors import UnknownVersion
from storage.registry.history import RegistryState
from storage.registry.manifest import HistoryEvent, Manifest
from storage.registry.registry import CheckpointRegistry


def happened(*lines: tuple[str, int] | tuple[str, int, int]) -> list[HistoryEvent]:
    """Events; the third number is the round of an `added`, and of others the version that served before."""
    made = []
    for event, version, *more in lines:
        name = "round" if event == "added" else "previous"
        values = {"at": 1.0, "event": event, "version": version, "by": "test", name: more[0] if more else None}
        made.append(HistoryEvent.model_validate(values))
    return made


SERVED = [item for number in (1, 2, 3) for item in (("added", number), ("promoted", number, number - 1 or None))]
CANDIDATES = [("added", number, number) for number in (4, 5, 6, 7)]
IMPORTS = [("added", number) for number in (8, 9, 10)]


@pytest.mark.parametrize(
    ("protected", "lines", "keep", "removed"),
    [
        ((3,), [*SERVED, *CANDIDATES, *IMPORTS], 2, [4, 5, 8]),
        ((3,), [*SERVED, *CANDIDATES, *IMPORTS], 9, [4, 5, 8]),
        ((3,), [*SERVED, *CANDIDATES, *IMPORTS], 1, [1, 4, 5, 6, 8, 9]),
        ((3,), [*SERVED, *CANDIDATES, *IMPORTS], 0, [1, 2, 4, 5, 6, 7, 8, 9, 10]),
        ((1, 2, 3, 4, 8), [*SERVED, *CANDIDATES, *IMPORTS], 1, [5, 6, 9]),
        # One that an operator let serve after all is one that served.
        ((3,), [*SERVED, *CANDIDATES, *IMPORTS, ("rolled_back", 4, 3)], 3, [5, 8]),
        # What served before somebody else's move, though the line of its own is lost.
        ((3,), [*SERVED, *CANDIDATES, *IMPORTS, ("rejected", 7, 5)], 3, [4, 8]),
        # A history without them concludes nothing: they count as versions that served.
        ((3,), SERVED, 8, [1]),
        ((3,), [], 9, []),
    ],
)
def test_each_kind_is_counted_by_itself(
    protected: tuple[int, ...], lines: list[tuple[str, int]], keep: int, removed: list[int]
) -> None:
    assert RegistryState(happened(*lines)).removable(range(1, 11), protected, keep) == removed


def test_what_the_history_says_of_candidates() -> None:
    events = happened(*SERVED, *CANDIDATES, ("rejected", 4, 3), ("inconclusive", 5, 3), ("rolled_back", 4, 3))
    state = RegistryState(events)
    assert (state.never_served, state.candidates) == ({5, 6, 7}, {4, 5, 6, 7})
    assert state.verdicts == {4: "rejected", 5: "inconclusive"}
    assert state.turned_down == {5}, "an operator let 4 serve"
    assert [state.marks(version) for version in (3, 4, 5)] == [
        ["rolled back"],
        ["rejected"],
        ["never served", "inconclusive"],
    ]


def test_moves_that_a_kill_cut_short() -> None:
    cut, back, again = ("promoted", 4, 3), ("rolled_back", 2, 3), ("promoted", 5, 3)
    for lines, serving, served in (
        ([], None, (1, 2, 3)),
        ([cut], None, (1, 2, 3, 4)),
        ([cut], 4, (1, 2, 3, 4)),
        ([cut], 3, (1, 2, 3)),
        ([cut, back], 2, (1, 2)),
        ([cut, cut], 4, (1, 2, 3, 4)),
        ([cut, ("rolled_back", 3, 4), again], 5, (1, 2, 3, 5)),
        ([cut, ("promoted", 7, 6)], 7, (1, 2, 3, 4, 6, 7)),  # a line between them was lost
    ):
        assert RegistryState(happened(*SERVED, *lines), serving).served == served, (lines, serving)


@pytest.fixture
def registry(tmp_path: Path, weights: Callable[[str], Path], manifest: Callable[..., Manifest]) -> CheckpointRegistry:
    """Versions 1 to 4 served in turn."""
    made = CheckpointRegistry(tmp_path / "checkpoints")
    for number in range(1, 5):
        made.add(weights(f"weights {number}"), manifest(parent=number - 1 or None, round=number), by="gate")
        made.promote(number, by="gate", reason="")
    return made


def test_many_rejections_push_out_no_version_that_served(
    registry: CheckpointRegistry, weights: Callable[[str], Path], manifest: Callable[..., Manifest]
) -> None:
    for number in range(5, 17):
        registry.add(weights(f"weights {number}"), manifest(parent=4, round=number), by="gate")
        registry.record(happened(("rejected", number, 4))[0])
        registry.prune(3)
        assert registry.versions()[:4] == [1, 2, 3, 4]
    assert registry.versions()[4:] == [15, 16]
    assert registry.prunable(1) == [15]
    registry.set_shadow(15, by="operator", reason="look again")
    registry.pin(16, "operator")
    assert registry.prunable(0) == [2], "3 is what a rollback leads to, 1 the released model"


@pytest.mark.parametrize("withdrawn", [False, True])
def test_a_promotion_that_a_kill_cut_short_is_not_rolled_back_to(
    registry: CheckpointRegistry, weights: Callable[[str], Path], manifest: Callable[..., Manifest], withdrawn: bool
) -> None:
    """Killed between the line and the ref; an operator moved to an import and back, before or after the gate was there
    again.
    """
    for number in (5, 6):
        registry.add(weights(f"weights {number}"), manifest(round=5 if number == 5 else None), by="test")
    registry.record(happened(("promoted", 5, 4))[0])
    registry.promote(6, by="operator", reason="the import")
    before = registry.ref("previous")
    assert before is not None and before.version == 4, "5 never served"
    if withdrawn:
        registry.record(happened(("inconclusive", 5, 4))[0])
    assert registry.state().never_served == {5}
    assert registry.roll_back(to=None, by="operator", reason="not that").version == 4


def test_a_rollback_without_a_version_never_takes_one_that_never_served(
    registry: CheckpointRegistry, weights: Callable[[str], Path], manifest: Callable[..., Manifest]
) -> None:
    registry.add(weights("weights 5"), manifest(parent=4, round=5), by="gate")
    registry.record(happened(("rejected", 5, 4))[0])
    registry.add(weights("weights 6"), manifest(), by="import")
    for target in (3, 2, 1):
        assert registry.roll_back(to=None, by="operator", reason="").version == target
    with pytest.raises(UnknownVersion, match="no version served before 1"):
        registry.roll_back(to=None, by="operator", reason="")


@pytest.mark.parametrize("how", ["restore", "by hand"])
def test_with_the_serving_ref_lost_the_gates_verdict_still_tells_what_never_served(
    registry: CheckpointRegistry, weights: Callable[[str], Path], manifest: Callable[..., Manifest], how: str
) -> None:
    """Nothing says any more that the promotion of 5 was cut short, but that the gate withdrew it."""
    for number in (5, 6):
        registry.add(weights(f"weights {number}"), manifest(round=5 if number == 5 else None), by="test")
    registry.record(happened(("promoted", 5, 4))[0])
    registry.record(happened(("inconclusive", 5, 4))[0])
    registry.ref_path("serving").unlink()
    if how == "restore":
        assert registry.restore(by="check", reason="lost").version == 4
    else:
        registry.promote(6, by="operator", reason="the import")
        assert registry.roll_back(to=None, by="operator", reason="not that").version == 4
