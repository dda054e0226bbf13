"""Rounds that are killed and go on: the same weights, bit for bit, as if nothing had happened; real processes."""

import os
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
import torch
from safetensors.torch import load_file

from adapters.recipes.build import RECIPES
from adapters.rounds.run import train_and_score
from adapters.rounds.stop import StopRequest
from configs.settings import Settings
from daemon.rounds.environment import round_environment
from daemon.rounds.launch import launch_command
from storage import durable
from storage.registry.bases import base_named_in
from storage.registry.registry import CheckpointRegistry
from storage.rounds.folder import RoundFolder
from tests.adapters.frozen_network import NAME, add_version, built
from tests.adapters.recipes.added_terms import TERMS, TOGETHER, named, with_encoder
from tests.adapters.rounds.forked_rounds import DEADLINE, fork, run_pair, wait
from tests.sections import recipe_settings

ROOT = Path(__file__).parents[3]
KILLED = -signal.SIGKILL
RECIPES = [
    pytest.param(
        name,
        mfm,
        {},
        id=f"{name}{'+mfm' if mfm else ''}",
        marks=pytest.mark.nightly,
    )
    for name in RECIPES
    for mfm in (False, True)
    if mfm is not recipe_settings(name=name).test_time or name == "dacs"
]
"""Each recipe with MFM if it can have it, and the barest one."""
RECIPES.append(pytest.param("dacs", True, TOGETHER, id="dacs+mfm+terms"))
"""With all terms that can be added: the one of every `make test`."""
RECIPES += [pytest.param("dacs", True, terms, id=name, marks=pytest.mark.nightly) for name, terms in TERMS.items()]


LINEAR = {"name": "deeplabv3plus", "encoder": "resnet_tiny", "advanced": {"output_stride": 16}}
"""A network with one linear classifier, for the recipe that needs it."""


def sections(name: str, mfm: bool, terms: dict | None = None, steps: int = 40, processes: int = 1) -> dict:
    """Settings of a round of tiny steps with dropout; `terms` stand in `recipe.advanced`."""
    return {
        "recipe": {**named(name), "advanced": terms} if terms else named(name),
        "mfm": {"enabled": mfm},
        "network": {**(LINEAR if name == "gold" else {}), "multi_resolution": name == "hrda", "dropout": 0.2},
        "round": {
            "steps": steps,
            "processes": processes,
            "crop_height": 32,
            "crop_width": 32,
            "advanced": {"save_steps": min(20, steps // 2)},
        },
    }


def again(folder: RoundFolder, name: str) -> RoundFolder:
    """Another folder with the same spec."""
    copy = RoundFolder(folder.path.with_name(name))
    copy.path.mkdir()
    copy.spec_path.write_bytes(folder.spec_path.read_bytes())
    return copy


def launch(folder: RoundFolder) -> subprocess.Popen[bytes]:
    """All processes of a round, as the daemon starts them."""
    settings = Settings.model_validate(folder.spec().settings).round
    command, environment = launch_command(settings, folder.spec_path), round_environment(settings)
    with folder.log.open("ab") as log:
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)


def kill_all(folder: RoundFolder) -> None:
    """SIGKILL to the launcher and to the processes of the round, which lead groups of their own."""
    for process in psutil.process_iter(["cmdline"]):
        if process.pid != os.getpid() and str(folder.spec_path) in (process.info["cmdline"] or []):
            process.kill()


def killed_before_a_second_state() -> None:
    """The first state is published; at the second one everything is written, and SIGKILL comes before its name."""
    publish = durable.publish_directory

    def publish_once(temp: Path, final: Path) -> None:
        if final.parent.name == "state" and list(final.parent.glob("[0-9]*")):
            os.kill(os.getpid(), signal.SIGKILL)
        publish(temp, final)

    durable.publish_directory = publish_once


def in_one_go(folder: RoundFolder) -> None:
    with StopRequest() as stop:
        assert train_and_score(folder.spec_path, stop) == 0


def assert_same(one: RoundFolder, other: RoundFolder, steps: int = 40) -> None:
    """The candidate, and everything that the next round would inherit."""
    assert one.states.steps() == other.states.steps() == [steps]
    files = [one.candidate, *sorted(one.states.latest().glob("*.safetensors"))]
    assert {"student.safetensors", "state.safetensors"} <= {path.name for path in files}
    for path in files:
        mine, theirs = load_file(path), load_file(other.path / path.relative_to(one.path))
        assert mine.keys() == theirs.keys()
        different = [key for key in mine if not torch.equal(mine[key], theirs[key])]
        assert not different, f"{path.name}: {different}"


def killed_half_way(whole: RoundFolder, steps: int) -> None:
    """Run a round in one go, and another one that is killed at its first state and goes on; they end the same."""
    killed = again(whole, "000002")
    process = fork(killed)
    end = time.monotonic() + DEADLINE
    while killed.states.steps() != [steps // 2]:
        assert time.monotonic() < end and process.is_alive(), killed.log.read_text()
        time.sleep(0.001)
    process.kill()
    assert wait(process) == KILLED and killed.scores() is None
    process = fork(killed)
    in_one_go(whole)
    assert wait(process) == 0, killed.log.read_text()
    assert f"resumes after step {steps // 2}\n" in killed.log.read_text()
    assert killed.scores().steps == killed.last_progress().step == steps
    assert_same(whole, killed, steps)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(("name", "mfm", "terms"), RECIPES)
def test_killed_and_gone_on_is_the_same_as_in_one_go(
    training_state, tmp_path: Path, name: str, mfm: bool, terms: dict
) -> None:
    terms = with_encoder(terms, tmp_path)
    steps = 20 if terms else 40  # of a few milliseconds each, the more of them
    whole = training_state.round(**sections(name, mfm, terms, steps))
    killed_half_way(whole, steps)


@pytest.mark.timeout(300)
@pytest.mark.nightly
def test_a_round_of_a_version_with_a_base_goes_on_the_same(training_state, tmp_path: Path) -> None:
    terms = {"dida": {"enabled": True}}
    settings = training_state.settings(**(sections("dacs", True, terms) | {"network": {"name": NAME}}))
    training_state.draw_source()
    training_state.fill_buffer(settings)
    registry = CheckpointRegistry(training_state.layout.checkpoints)
    add_version(registry, settings, tmp_path / "saved", built(settings))
    whole = training_state.spec(settings)
    killed_half_way(whole, 40)
    for name in ("student", "dida"):
        assert base_named_in(whole.states.latest() / f"{name}.safetensors") == base_named_in(registry.weights_path(1))


@pytest.mark.timeout(300)
@pytest.mark.nightly
def test_each_of_two_processes_goes_on_from_its_own_statistics(training_state) -> None:
    """On CPUs they normalise with their own crops; the file of the second one is compared as well."""
    whole = training_state.round(**sections("bn_statistics", False, steps=200, processes=2))
    killed = again(whole, "000002")
    process = launch(killed)
    end = time.monotonic() + DEADLINE
    while not killed.states.steps():
        assert time.monotonic() < end and process.poll() is None, killed.log.read_text()
        time.sleep(0.005)
    kill_all(killed)
    assert process.wait(DEADLINE) == KILLED and killed.scores() is None
    step, state = killed.states.steps()[-1], killed.states.latest()
    own, first = load_file(state / "statistics_1.safetensors"), load_file(state / "student.safetensors")
    running = [name for name in own if "running" in name]
    assert running and not any(torch.equal(first[name.removeprefix("student.")], own[name]) for name in running)
    run_pair(killed)
    run_pair(whole)
    assert f"resumes after step {step}\n" in killed.log.read_text()
    assert_same(whole, killed, steps=200)


@pytest.mark.timeout(300)
def test_a_kill_in_the_middle_of_saving_leaves_the_state_before(training_state) -> None:
    whole = training_state.round(**sections("dacs", True))
    killed = again(whole, "000002")
    process = fork(killed, killed_before_a_second_state)
    in_one_go(whole)
    assert wait(process) == KILLED, killed.log.read_text()
    states = killed.states
    assert states.steps() == [20]
    assert sorted(path.name for path in states.root.iterdir()) == [".000040.partial", "000020"]
    in_one_go(killed)
    assert [path.name for path in states.root.iterdir()] == ["000040"], "what the kill left is gone"
    assert_same(whole, killed)
