"""What the gate remembers, damaged or at odds with buffer and registry: found by code, and repaired."""

import pytest

from storage.checking import check_state
from storage.gate.comparisons import ComparisonScores, ComparisonStore
from storage.gate.conditions import Condition, Conditions, ConditionStore
from storage.registry.registry import CheckpointRegistry


@pytest.fixture
def store(whole, sql) -> ConditionStore:
    """Two conditions: frame 1 is golden in the first, frame 2 in the second."""
    sql("INSERT INTO kept (frame, condition) VALUES (1, 1), (2, 2)")
    store = ConditionStore(whole.conditions)
    items = tuple(
        Condition(number=number, name=f"condition-{number}", opened=1.0, last_seen=1.0, centroids=((1.0, 2.0),),
                  golden=(number,), best=number)
        for number in (1, 2)
    )  # fmt: skip
    store.write(Conditions(released=1, threshold=1.0, given=2, conditions=items))
    return store


def _change(store: ConditionStore, number: int, **update: object) -> None:
    known = store.read()
    items = tuple(item.model_copy(update=update) if item.number == number else item for item in known.conditions)
    store.write(known.model_copy(update={"conditions": items}))


def test_what_is_whole_is_no_problem(store, whole, expect) -> None:
    comparisons = ComparisonStore(whole.comparisons)
    comparisons.answer(comparisons.ask("recall", [1, 2], [1]).number, ComparisonScores(status="failed", reason="x"))
    expect()


def test_a_damaged_file_is_removed_and_golden_frames_stay_for_the_next_build(store, expect, sql, whole) -> None:
    store.path.write_text("{")
    expect("conditions_damaged", naming=store.path)
    assert store.read() is None
    sql("DELETE FROM leases")
    expect()  # what is kept stays


def test_a_best_version_that_is_gone_gives_way_to_the_released_one(store, expect) -> None:
    _change(store, 2, best=9)
    expect("condition_version")
    assert [(item.best, "gone" in item.best_reason) for item in store.read().conditions] == [(1, False), (1, True)]


def test_a_damaged_released_version_gives_way_to_none(store, whole, expect) -> None:
    CheckpointRegistry(whole.checkpoints).weights_path(1).write_bytes(b"short")
    expect("condition_version", left=("version_damaged",))
    assert [item.best for item in store.read().conditions] == [None, 2]


def test_frames_and_conditions_that_disagree(store, expect, sql) -> None:
    _change(store, 1, golden=(1, 77))
    sql("INSERT INTO kept (frame, condition) VALUES (3, 5)", "UPDATE kept SET condition = 1 WHERE frame = 2")
    expect("golden_missing", "kept_stale")
    assert [item.golden for item in store.read().conditions] == [(1,), (2,)]


def test_records_and_comparisons_that_cannot_be_read(store, whole, expect) -> None:
    whole.recall.write_text("{")
    whole.probation.write_text("[]")
    whole.notified.write_text("[]")
    (whole.comparisons / "000007").mkdir(parents=True)
    (whole.comparisons / "000008").mkdir()
    (whole.comparisons / "000008" / "request.json").write_text("{")
    (whole.comparisons / "000008" / ".request.json.1.partial").write_text("half")
    whole.pause.write_text("{")
    assert not [item for item in check_state(whole) if item.detail.startswith(f"{item.path}:")], "a file is named once"
    found = (*["gate_record_damaged"] * 3, "comparison_stale", "comparison_stale", "unfinished")
    expect(*found, left=("pause_damaged",))
    assert whole.pause.exists(), "a repair resumes nothing"
    assert not list(whole.comparisons.glob("*"))
