"""A round in this process: what it writes for each way it can end, and that it repeats under a seed."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from adapters.round import main
from adapters.rounds.inputs import load_inputs
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder
from tests.adapters.conftest import draw

pytestmark = pytest.mark.usefixtures("few_statistics")


def run(folder: RoundFolder) -> int:
    with StopRequest() as stop:
        return train_and_score(folder.spec_path, stop)


def test_completed_round_leaves_candidate_scores_and_progress(training_state) -> None:
    folder = training_state.round()
    assert run(folder) == 0
    scores = folder.scores()
    assert (scores.status, scores.reason, scores.steps) == ("completed", "step budget", 3)
    assert scores.candidate.finite and not scores.candidate.missing and scores.incumbent.version == 1
    assert len(scores.candidate.area) == 2  # the held-out frames
    models = 2 + len(scores.others)  # a line for each that was scored: a long scoring is no stall
    scoring = ["scoring"] * (1 + models)
    assert [line.phase for line in folder.progress()] == ["loading", "training", "training", *scoring, "done"]
    trained = folder.progress()[2]
    assert trained.step == 3 and set(trained.losses) == {"source", "mix", "mfm"}
    assert trained.memory["resident"] > 10**8 and trained.memory["device"] == torch.cuda.max_memory_reserved()
    assert trained.images_per_second > 0 and 0 <= trained.kept_ratio <= 1


@pytest.mark.parametrize("problem", [False, True])
def test_canary_images_are_scored_unless_the_round_trained_on_them(training_state, problem: bool) -> None:
    """Frame 100 became a canary image while the round trained on it; one label that is wrong leaves none to score."""
    folders = {name: training_state.folder / "canary" / name for name in ("images", "labels")}
    for folder in folders.values():
        folder.mkdir(parents=True)
    for seed in (100, 500, 501, 502):
        image, label = draw(seed, dusk=True)
        Image.fromarray(image).save(folders["images"] / f"{seed}.png")
        Image.fromarray(label[:9] if problem and seed == 501 else label).save(folders["labels"] / f"{seed}.png")
    folder = training_state.round(canary=folders)
    assert run(folder) == 0
    scores = folder.scores()
    for model in (scores.candidate, scores.incumbent, *scores.others.values()):
        assert model.canary is None if problem else np.shape(model.canary.tp) == (3, 3)
    assert ("501.png: 64x9 pixels" in scores.canary_problem) == problem


def test_candidate_is_a_plain_network_that_learned(training_state) -> None:
    folder = training_state.round()
    run(folder)
    before = load_file(CheckpointRegistry(training_state.layout.checkpoints).weights_path(1))
    after = load_file(folder.candidate)
    assert before.keys() == after.keys() and all(before[name].shape == after[name].shape for name in before)
    assert sum(not torch.equal(before[name], after[name]) for name in before) > len(before) / 2


def test_a_round_offers_student_teacher_and_averages(training_state) -> None:
    folder = training_state.round(round={"advanced": {"average_ratios": [0.25, 0.75]}})
    run(folder)
    scores = folder.scores()
    assert list(scores.candidates()) == ["teacher", "student", "average_25", "average_75"]
    assert all(len(model.area) == 2 and model.finite for model in scores.candidates().values())
    incumbent = load_file(CheckpointRegistry(training_state.layout.checkpoints).weights_path(1))
    teacher, quarter = load_file(folder.candidate), load_file(folder.other("average_25"))
    for name, mine in teacher.items():
        if "running" not in name and mine.is_floating_point():
            torch.testing.assert_close(quarter[name], 0.25 * mine + 0.75 * incumbent[name])
        elif not mine.is_floating_point():
            assert torch.equal(quarter[name], mine)
    means = [name for name in teacher if "running_mean" in name]
    mixed = [torch.lerp(incumbent[name], teacher[name], 0.25) for name in means]
    assert not all(torch.allclose(quarter[name], mix) for name, mix in zip(means, mixed, strict=True)), (
        "estimated afresh"
    )
    assert not all(torch.equal(teacher[name], load_file(folder.other("student"))[name]) for name in teacher)


def test_a_round_that_restarts_trains_the_released_weights(training_state) -> None:
    first = training_state.round().spec()
    training_state.register_network(training_state.settings(), seed=1)
    spec = first.model_copy(update={"incumbent": 2, "released": 1})
    released = load_file(CheckpointRegistry(training_state.layout.checkpoints).weights_path(1))
    for restarts in (True, False):
        inputs = load_inputs(spec.model_copy(update={"restarts": restarts}), training_state.settings())
        inputs.buffer.close()
        mine = inputs.student.state_dict()
        assert all(torch.equal(mine[name], weight) for name, weight in released.items()) is restarts


def test_rounds_repeat_under_a_seed_and_differ_between_rounds(training_state) -> None:
    first = training_state.round()
    settings = training_state.settings()
    run(first)
    again = RoundFolder(training_state.folder / "again")
    again.path.mkdir()
    again.spec_path.write_bytes(first.spec_path.read_bytes())
    run(again)
    second = training_state.spec(settings)
    run(second)
    one, same, other = (load_file(folder.candidate) for folder in (first, again, second))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not all(torch.equal(one[name], other[name]) for name in one)


def test_source_free_round(training_state) -> None:
    folder = training_state.round(source=None)
    assert run(folder) == 0
    assert set(folder.progress()[2].losses) == {"mix", "mfm"}
    assert folder.scores().candidate.source is None


def test_round_without_mfm(training_state) -> None:
    folder = training_state.round(mfm={"enabled": False})
    assert run(folder) == 0
    assert set(folder.progress()[2].losses) == {"source", "mix"}


def test_time_budget_ends_the_training(training_state) -> None:
    folder = training_state.round(round={"steps": 100_000, "max_seconds": 0.5})
    assert run(folder) == 0
    scores = folder.scores()
    assert (scores.status, scores.reason) == ("completed", "time budget")
    assert 0 < scores.steps < 1000


def test_loss_that_is_not_finite_fails_with_the_step(training_state) -> None:
    optim = {"learning_rate": 1e30, "advanced": {"warmup_steps": 0}}
    folder = training_state.round(round={"steps": 6, "optim": optim})
    assert run(folder) == 0
    scores = folder.scores()
    assert scores.status == "failed" and scores.reason.startswith("non-finite loss at step 2: {'source':")
    assert scores.candidate is None and not folder.candidate.exists()


def test_missing_version_is_recorded_with_the_reason(training_state, capsys) -> None:
    folder = training_state.round()
    spec = json.loads(folder.spec_path.read_text())
    folder.spec_path.write_text(json.dumps({**spec, "incumbent": 7, "released": 7}))
    assert run(folder) == 1
    assert folder.scores().status == "failed" and "7" in folder.scores().reason
    assert "UnknownVersion" in capsys.readouterr().err


def test_frames_that_left_the_buffer_fail_the_round(training_state) -> None:
    folder = training_state.round()
    spec = json.loads(folder.spec_path.read_text())
    folder.spec_path.write_text(json.dumps({**spec, "train_frames": [901, 902]}))
    assert run(folder) == 1
    assert "none of its 2 training frames" in folder.scores().reason


def test_damaged_spec_is_recorded(training_state) -> None:
    folder = training_state.round()
    folder.spec_path.write_text("{")
    assert run(folder) == 1
    assert folder.scores().status == "failed" and "spec.json" in folder.scores().reason


def test_other_class_list_than_the_incumbents_is_refused(training_state) -> None:
    training_state.round()
    other = training_state.settings(source=None)
    wider = other.model_copy(update={"classes": (*other.classes, other.classes[0].model_copy(update={"name": "tree"}))})
    folder = training_state.spec(wider)
    assert run(folder) == 1
    assert "3 classes" in folder.scores().reason and "4" in folder.scores().reason


def test_sigterm_during_training_stops_after_the_step(training_state, monkeypatch) -> None:
    folder = training_state.round(round={"steps": 100_000})
    append = RoundFolder.append_progress

    def append_and_send(self: RoundFolder, progress) -> None:
        append(self, progress)
        if progress.phase == "training" and progress.losses:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RoundFolder, "append_progress", append_and_send)
    assert run(folder) == 0
    scores = folder.scores()
    assert (scores.status, scores.reason) == ("stopped", "SIGTERM") and scores.steps >= 1
    assert not folder.candidate.exists()


@pytest.mark.parametrize("phase", ["loading", "scoring"])
def test_sigterm_outside_training_stops_at_once(training_state, monkeypatch, phase) -> None:
    folder = training_state.round()
    append = RoundFolder.append_progress

    def append_and_send(self: RoundFolder, progress) -> None:
        append(self, progress)
        if progress.phase == phase:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(RoundFolder, "append_progress", append_and_send)
    assert run(folder) == 0
    assert folder.scores().status == "stopped"
    assert [line.phase for line in folder.progress()][-2:] == [phase, "done"]


def test_arguments_are_checked(capsys) -> None:
    assert main([]) == 2
    assert "spec.json" in capsys.readouterr().err


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before
