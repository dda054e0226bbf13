"""Rounds in processes of their own, as the daemon starts them: whole, stopped by SIGTERM, on two processes."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors.torch import load_file

from storage.rounds.folder import RoundFolder

ROOT = Path(__file__).parents[3]
DEADLINE = 120.0
"""Longest wait for a condition on a busy machine (seconds)."""
LAUNCH = (
    *(sys.executable, "-m", "accelerate.commands.launch"),
    *("--num_processes", "1", "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--cpu"),
    *("-m", "adapters.round"),
)
ELASTIC = (
    sys.executable,
    "-m",
    "torch.distributed.run",
    "--standalone",
    "--nproc_per_node",
    "2",
    "-m",
    "adapters.round",
)
"""What `accelerate launch --multi_gpu` runs; with `--cpu` it starts one process however many are asked for."""


def start(command: tuple[str, ...], folder: RoundFolder) -> subprocess.Popen[bytes]:
    """Start a round in a process group of its own, output into its log."""
    with folder.log.open("wb") as log:
        return subprocess.Popen(
            [*command, str(folder.spec_path)],
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        )


def wait_for(condition: Callable[[], bool], folder: RoundFolder) -> None:
    end = time.monotonic() + DEADLINE
    while not condition():
        assert time.monotonic() < end, f"still waiting; log:\n{folder.log.read_text()}"
        time.sleep(0.05)


def alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.nightly  # each end-to-end test has such a round
@pytest.mark.timeout(300)
def test_round_under_accelerate_launch(training_state) -> None:
    folder = training_state.round()
    process = start(LAUNCH, folder)
    assert process.wait(DEADLINE) == 0, folder.log.read_text()
    scores = folder.scores()
    assert (scores.status, scores.reason, scores.steps) == ("completed", "step budget", 3)
    assert scores.candidate.finite and len(scores.reference_marginal) == 3
    assert load_file(folder.candidate)
    assert folder.last_progress().phase == "done"


@pytest.mark.timeout(300)
def test_sigterm_to_the_process_group_stops_cleanly(training_state) -> None:
    """The launcher dies of the signal at once; the round itself goes on to the end of its step and reports."""
    folder = training_state.round(round={"steps": 1_000_000})
    process = start(LAUNCH, folder)
    wait_for(lambda: any(line.losses for line in folder.progress()), folder)
    os.killpg(process.pid, signal.SIGTERM)
    process.wait(DEADLINE)
    wait_for(lambda: not alive(process.pid), folder)
    scores = folder.scores()
    assert (scores.status, scores.reason) == ("stopped", "SIGTERM") and scores.steps >= 1
    assert "Traceback" not in folder.log.read_text() and not folder.candidate.exists()


@pytest.mark.nightly
@pytest.mark.timeout(300)
def test_two_processes_train_together_and_one_writes(training_state) -> None:
    folder = training_state.round()
    process = start(ELASTIC, folder)
    assert process.wait(DEADLINE) == 0, folder.log.read_text()
    scores = folder.scores()
    assert (scores.status, scores.reason, scores.steps) == ("completed", "step budget", 3)
    assert [line.phase for line in folder.progress()].count("done") == 1
    assert load_file(folder.candidate)
