"""A round that starts from the training state of the one before it, or refuses it and starts clean."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from adapters.checkpoints.checkpoint import make_manifest
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from adapters.rounds.training_state import read_tree
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder, RoundStore
from tests.adapters.conftest import TrainingState

pytestmark = pytest.mark.usefixtures("few_statistics")

ROUND = {"steps": 3, "optim": {"learning_rate": 1e-3, "advanced": {"warmup_steps": 0}}}


def run(folder: RoundFolder) -> RoundFolder:
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0
    assert folder.scores().status == "completed", folder.scores().reason
    return folder


@pytest.fixture(scope="module")
def after_round_1(tmp_path_factory) -> Path:
    """Its state directory, with its candidate as version 2; run once, put away for the tests to copy."""
    torch.set_num_threads(1)
    state = TrainingState(tmp_path_factory.mktemp("inherited") / "state")
    state.folder.mkdir()
    folder = run(state.round(round=ROUND))
    registry = CheckpointRegistry(state.layout.checkpoints)
    registry.add(folder.candidate, make_manifest(state.settings(), origin="import"), by="import")
    return state.folder.rename(state.folder.with_name("kept"))


@pytest.fixture
def training_state(after_round_1) -> Iterator[TrainingState]:
    """A copy at the path that the round knows."""
    state = TrainingState(after_round_1.with_name("state"))
    shutil.copytree(after_round_1, state.folder)
    yield state
    shutil.rmtree(state.folder)


@pytest.fixture
def first(training_state) -> RoundFolder:
    return RoundStore(training_state.layout.rounds).folder(1)


def second(training_state, inherits: int | None, **sections) -> RoundFolder:
    """The next round, from the newest version."""
    folder = training_state.spec(training_state.settings(**{"round": ROUND, **sections}))
    folder.spec_path.write_text(folder.spec().model_copy(update={"inherits": inherits}).model_dump_json())
    return folder


def state(folder: RoundFolder) -> dict:
    return read_tree(folder.states.latest())


def same(one: RoundFolder, other: RoundFolder, name: str = "candidate.safetensors") -> bool:
    mine, theirs = load_file(one.path / name), load_file(other.path / name)
    return all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_counters_moments_teacher_and_rebuilder_go_on(training_state, first, capsys) -> None:
    clean = run(second(training_state, None))
    heir = second(training_state, 1)
    heir.spec_path.write_text(heir.spec().model_copy(update={"round": clean.number}).model_dump_json())
    run(heir)
    assert "inherits the training state of round 1" in capsys.readouterr().err
    assert state(first)["training"]["recipe"]["steps"] == 3
    assert state(heir)["training"]["recipe"]["steps"] == 6 and state(clean)["training"]["recipe"]["steps"] == 3
    assert state(heir)["counters"]["steps"] == 3, "the round's own schedule began anew"
    for name in ("recipe", "target", "source"):
        mine, other = state(heir)["training"][name], state(clean)["training"][name]
        assert mine == other or torch.equal(mine["draws"]["generator"], other["draws"]["generator"])
    assert not same(heir, clean) and not same(heir, clean, "state/000003/rebuilder.safetensors")


def test_the_teacher_is_not_made_anew(training_state, first) -> None:
    """With a learning rate of nearly nothing the student stays; the teacher is still an average of more than it."""
    still = {"steps": 1, "optim": {"learning_rate": 1e-12, "advanced": {"warmup_steps": 0}}}
    heir = run(second(training_state, 1, round=still, mfm={"learning_rate": 1e-12}))
    before, after = (folder.states.latest() / "student.safetensors" for folder in (first, heir))
    weights = [name for name in load_file(before) if name.endswith("weight")]
    for name in weights:
        torch.testing.assert_close(load_file(before)[name], load_file(after)[name], rtol=0, atol=1e-9)
    serving = load_file(first.candidate)
    teacher = load_file(heir.states.latest() / "teacher.safetensors")
    assert all(torch.equal(serving[name], teacher[name]) for name in weights), (
        "its first pseudo-labels are the server's"
    )
    assert not all(torch.equal(load_file(after)[name], teacher[name]) for name in weights)


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        pytest.param({"mfm": {"ablation": {"dim": 64}}}, "does not fit this round", marks=pytest.mark.nightly),
        ({"mfm": {"enabled": False}}, "does not fit this round"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_and_the_round_is_a_clean_one(
    training_state, first, capsys, sections, reason
) -> None:
    clean, heir = second(training_state, None, **sections), second(training_state, 1, **sections)
    heir.spec_path.write_text(heir.spec().model_copy(update={"round": clean.number}).model_dump_json())
    run(clean), run(heir)
    assert reason in capsys.readouterr().err
    assert same(clean, heir) and same(clean, heir, "state/000003/student.safetensors")


def test_a_state_of_another_version_is_refused(training_state, first, capsys) -> None:
    training_state.register_network(training_state.settings(), seed=5)
    clean, heir = second(training_state, None), second(training_state, 1)
    heir.spec_path.write_text(heir.spec().model_copy(update={"round": clean.number}).model_dump_json())
    run(clean), run(heir)
    assert "not inherited: its network is not the serving version" in capsys.readouterr().err
    assert same(clean, heir) and same(clean, heir, "state/000003/rebuilder.safetensors")


def test_a_state_that_is_gone_is_refused(training_state, first, capsys) -> None:
    first.states.remove()
    run(second(training_state, 1))
    assert "round 1 has no training state" in capsys.readouterr().err
    run(second(training_state, 77))
    assert "no round 77" in capsys.readouterr().err


def test_a_damaged_state_is_refused(training_state, first, capsys) -> None:
    (first.states.latest() / "optimizer.bin").write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    run(second(training_state, 1))
    assert "does not fit this round" in capsys.readouterr().err
