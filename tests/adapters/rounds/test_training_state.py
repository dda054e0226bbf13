"""What a training state is made of, and that reading it runs no code."""

import json

import pytest
import torch

from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from adapters.rounds.training_state import read_tree, write_tree

pytestmark = pytest.mark.usefixtures("few_statistics")


def test_trees_come_back(tmp_path) -> None:
    tree = {
        "steps": 2**70,
        "recipe": {"draws": {"generator": torch.arange(5, dtype=torch.uint8)}, "seen": [1, torch.ones(2, 3).T]},
        "source": None,
    }
    write_tree(tmp_path, tree)
    found = read_tree(tmp_path)
    assert (found["steps"], found["source"], found["recipe"]["seen"][0]) == (2**70, None, 1)
    assert torch.equal(found["recipe"]["draws"]["generator"], torch.arange(5, dtype=torch.uint8))
    assert torch.equal(found["recipe"]["seen"][1], torch.ones(3, 2))
    assert json.loads((tmp_path / "state.json").read_text())["steps"] == 2**70
    with pytest.raises(TypeError):
        write_tree(tmp_path, {"recipe": {1: 2}})
    with pytest.raises(TypeError):
        write_tree(tmp_path, {"recipe": object()})


class Danger:
    """Unpickling it writes a file."""

    def __init__(self, path) -> None:
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def run(folder) -> int:
    with StopRequest() as stop:
        return train_and_score(folder.spec_path, stop)


@pytest.mark.parametrize("name", ["optimizer.bin", "random_states_0.pkl"])
def test_a_state_that_would_run_code_does_not(training_state, capsys, tmp_path, name) -> None:
    folder = training_state.round()
    assert run(folder) == 0
    danger = tmp_path / "danger"
    torch.save(Danger(danger), folder.states.latest() / name)
    assert run(folder) == 1
    assert "cannot resume from" in folder.scores().reason
    assert not danger.exists()


def test_the_files_of_a_state_and_no_other_pickles(training_state) -> None:
    folder = training_state.round()
    assert run(folder) == 0
    names = {path.name for path in folder.states.latest().iterdir()}
    modules = {"student.safetensors", "teacher.safetensors", "rebuilder.safetensors"}
    assert names == {*modules, "state.json", "state.safetensors", "optimizer.bin", "random_states_0.pkl"}


def test_a_round_whose_training_had_ended_only_scores(training_state) -> None:
    folder = training_state.round()
    assert run(folder) == 0
    first, candidate = folder.scores(), folder.candidate.read_bytes()
    (folder.path / "scores.json").unlink()
    folder.candidate.unlink()
    assert run(folder) == 0
    again = folder.scores()
    assert (again.steps, again.reason, folder.candidate.read_bytes()) == (first.steps, first.reason, candidate)
    assert again.seconds > 0 and [line.step for line in folder.progress()][-1] == 3


def test_time_used_before_counts(training_state) -> None:
    """A round that had used its time goes on to the end of it, not through it again."""
    folder = training_state.round(round={"steps": 1000, "max_seconds": 0.4})
    assert run(folder) == 0
    steps = folder.scores().steps
    (folder.path / "scores.json").unlink()
    assert run(folder) == 0
    assert (folder.scores().steps, folder.scores().reason) == (steps, "time budget")
    assert 0 < steps < 1000
