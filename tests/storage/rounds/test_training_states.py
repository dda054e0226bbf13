"""Training states on disk: whole or not at all, one at a time, gone when nobody can go on from them."""

from pathlib import Path

import pytest

from storage import durable
from storage.rounds.folder import RoundStore
from storage.rounds.training_states import TrainingStates
from tests.storage.rounds.test_rounds import spec


@pytest.fixture
def states(tmp_path: Path) -> TrainingStates:
    return TrainingStates(tmp_path / "state")


def save(states: TrainingStates, step: int) -> None:
    draft = states.begin(step)
    assert draft == states.draft(step)
    (draft / "weights").write_text(f"step {step}")
    states.publish(step)


def test_nothing_was_saved(states: TrainingStates) -> None:
    assert (states.steps(), states.latest()) == ([], None)
    states.remove()


def test_the_newest_replaces_the_one_before(states: TrainingStates) -> None:
    save(states, 200)
    save(states, 1_000_000)
    assert states.steps() == [1_000_000]
    assert (states.latest() / "weights").read_text() == "step 1000000"
    assert [path.name for path in states.root.iterdir()] == ["1000000"]


def test_a_state_that_was_not_published_is_none(states: TrainingStates) -> None:
    save(states, 200)
    (states.begin(400) / "weights").write_text("half")
    assert states.latest().name == "000200"
    (states.begin(400) / "weights").write_text("whole")
    states.publish(400)
    assert (states.latest() / "weights").read_text() == "whole"


def test_both_are_there_until_the_older_one_is_removed(states: TrainingStates, monkeypatch) -> None:
    save(states, 200)
    with monkeypatch.context() as patch:
        patch.setattr(durable, "retire_directory", lambda path: (_ for _ in ()).throw(OSError("killed")))
        with pytest.raises(OSError, match="killed"):
            save(states, 400)
    assert states.steps() == [200, 400] and states.latest().name == "000400"
    save(states, 600)
    assert states.steps() == [600]


def test_states_of_other_rounds_are_removed(tmp_path: Path) -> None:
    store = RoundStore(tmp_path / "rounds")
    folders = [store.create(spec(number)) for number in (1, 2, 3)]
    for folder in folders[:2]:
        save(folder.states, 5)
    folders[1].states.begin(9)
    store.remove_states(spare=1)
    assert [folder.states.steps() for folder in folders] == [[5], [], []]
    assert [*folders[1].states.root.iterdir()] == []
    store.remove_states(spare=None)
    assert folders[0].states.steps() == []


def test_a_spared_round_is_not_pruned(tmp_path: Path) -> None:
    store = RoundStore(tmp_path / "rounds")
    for number in range(1, 6):
        store.create(spec(number))
    assert store.prune(2, spare=1) == [2, 3]
    assert store.numbers() == [1, 4, 5]
