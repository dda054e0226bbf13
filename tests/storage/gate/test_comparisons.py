"""Comparisons and conditions on disk: asked, answered, asked again after a kill, never half a record."""

from pathlib import Path

import pytest

from storage.errors import StorageError
from storage.gate.comparisons import KEPT, ComparisonScores, ComparisonStore
from storage.gate.conditions import Condition, Conditions, ConditionStore


def test_requests_are_answered_oldest_first(tmp_path: Path) -> None:
    store = ComparisonStore(tmp_path / "comparisons")
    assert store.waiting() is None
    one, two = store.ask("recall", [3, 1], [4, 5, 9]), store.ask("probation", [3, 2], [9], source=True)
    assert (one.number, two.number) == (1, 2)
    assert ComparisonStore(store.root).waiting() == one, "a kill of the observer loses no request"
    assert store.scores(1) is None
    store.answer(1, ComparisonScores(status="failed", reason="version 1 is damaged"))
    assert store.waiting() == two
    answer = store.scores(1)
    assert answer is not None and answer.reason == "version 1 is damaged"


def test_old_answers_go_and_numbers_go_on(tmp_path: Path) -> None:
    store = ComparisonStore(tmp_path)
    for _ in range(KEPT + 5):
        store.answer(store.ask("recall", [1, 2], [1]).number, ComparisonScores(status="completed"))
    assert len(list(tmp_path.glob("[0-9]*"))) == KEPT + 1
    assert store.ask("recall", [1, 2], [1]).number == KEPT + 6
    assert store.request(1) is None


def test_a_damaged_request_stops_no_other(tmp_path: Path) -> None:
    store = ComparisonStore(tmp_path)
    store.ask("recall", [1, 2], [1])
    (tmp_path / "000001" / "request.json").write_text("{")
    second = store.ask("recall", [1, 2], [1])
    assert store.waiting() == second


def test_conditions_come_back_as_they_were_and_damage_names_the_remedy(tmp_path: Path) -> None:
    store = ConditionStore(tmp_path / "conditions.json")
    assert store.read() is None
    day = Condition(number=1, name="day", opened=1.0, last_seen=2.0, centroids=((0.5, 1.5),), golden=(3, 4), best=2)
    known = Conditions(released=1, threshold=0.7, given=1, current=1, conditions=(day,))
    store.write(known)
    assert store.read() == known
    assert known.condition(1) == day and known.condition(2) is None
    store.path.write_text("[]")
    with pytest.raises(StorageError, match=r"conditions\.json.*mfmd check --repair"):
        store.read()
