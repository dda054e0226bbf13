"""Rounds that the end of a daemon interrupted: they go on with their frames, or are ended with the reason why not."""

import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import yaml

from daemon.errors import RoundRunning
from daemon.metrics import Metrics
from daemon.rounds import runner as rounds
from daemon.rounds.history import summaries
from daemon.rounds.loop import RoundLoop
from daemon.rounds.recovery import TRIES, recover
from daemon.rounds.runner import RoundContext, RoundFailed, RoundSuspended, continue_round, launch_round
from daemon.runtime.process_group import children_of, group_alive
from storage.layout import StateLayout
from storage.rounds.records import RoundScores, RoundSpec
from storage.rounds.verdict import AT_WORK, RoundStart
from tests.daemon.conftest import PRELUDE

ROOT = Path(__file__).parents[3]
SAVES_AND_WAITS = "save(20); progress(20); time.sleep(600)"
STOPS = "signal.signal(15, lambda *_: (scores('stopped', 'SIGTERM'), os._exit(0))); "


@pytest.fixture
def context(world, registry, layout):
    """What a daemon works with."""
    return RoundContext(world.settings, world.buffer, registry, threading.Event(), suspends=True)


@pytest.fixture
def killed(world, store, registry):
    """Round 1 as a daemon leaves it that is killed after the state of step 20 was saved."""
    frames = world.buffer.lease(1)
    folder = store.create(
        RoundSpec(
            round=1,
            incumbent=1,
            released=1,
            train_frames=tuple(frame.id for frame in frames if not frame.holdout),
            holdout_frames=tuple(frame.id for frame in frames if frame.holdout),
            settings=world.settings.model_dump(mode="json"),
            created=time.time(),
            trigger="manual",
        )
    )
    folder.enter("training", starts=(RoundStart(at=time.time() - 60, step=0),))
    (folder.states.begin(20) / "state.json").write_text("{}")
    folder.states.publish(20)
    return folder


def crash(folder, *steps):
    """Start the round's processes from these steps, each time to crash."""
    starts = tuple(RoundStart(at=1.0, step=step) for step in steps)
    folder.enter("training", starts=(*folder.record().starts, *starts))


def _loop(world, registry, layout, interrupted):
    metrics = Metrics(world.settings).rounds
    return RoundLoop(world.settings, world.buffer, registry, metrics, interrupted=interrupted)


def test_the_next_daemon_goes_on_before_anything_else(world, registry, store, layout, killed, program):
    program("print('step', folder.states.steps()); scores('failed', 'enough')")
    child = rounds.ProcessGroup(layout, [sys.executable, "-S", "-c", "import time; time.sleep(600)"])
    interrupted = recover(world.settings, world.buffer, registry)
    assert interrupted == 1 and not group_alive(child.pid)
    child.finish(1.0)
    assert (killed.scores(), killed.verdict(), world.buffer.leases()) == (None, None, [1])
    loop = _loop(world, registry, layout, interrupted)
    assert loop.running == 1
    with pytest.raises(RoundRunning, match="round 1 is running"):
        loop.request()
    loop.step()
    assert killed.verdict() is not None and killed.log.read_text() == "step [20]\n"
    assert (world.buffer.leases(), store.numbers(), loop.running) == ([], [1], None)
    assert [start.step for start in killed.record().starts] == [0, 20]
    assert killed.states.steps() == [], "a rejected candidate's state is of no use"
    assert loop.request() == 2


def test_its_frames_are_held_while_ingest_fills_the_buffer(bench, killed, world, registry, drop, write_image):
    ids = {*killed.spec().train_frames, *killed.spec().holdout_frames}
    assert len(ids) == 8
    world.close()
    small = bench(buffer={"capacity_frames": 10})
    assert recover(small.settings, small.buffer, registry) == 1
    for number in range(100, 112):
        write_image(drop / f"{number}.png", number)
    small.until(lambda: small.counts.committed_total == 20)
    held = {record.id for record in small.buffer.records()}
    assert ids <= held and len(held) == 10, "the other two places were used again and again"


@pytest.mark.parametrize("stage", AT_WORK)
def test_in_whichever_stage_of_its_work_it_was_killed_it_is_resumed_from_its_state(world, registry, killed, stage):
    killed.enter(stage)
    assert recover(world.settings, world.buffer, registry) == 1
    assert (killed.record().stage, world.buffer.leases(), killed.states.steps()) == (stage, [1], [20])


@pytest.mark.parametrize("ref", ["serving", "shadow"])
def test_a_damaged_ref_ends_no_interrupted_round_and_keeps_no_daemon_from_starting(world, registry, killed, ref):
    registry.ref_path(ref).write_bytes(b"")
    assert recover(world.settings, world.buffer, registry) == 1
    killed.write_scores(RoundScores(status="failed", reason="enough", steps=20, seconds=1.0))
    assert recover(world.settings, world.buffer, registry) is None
    assert world.buffer.leases() == []


def test_frames_whose_lease_is_gone_are_leased_again(world, registry, killed):
    world.buffer.release(1)
    assert recover(world.settings, world.buffer, registry) == 1
    assert world.buffer.leases() == [1]


def _no_state(world, registry, folder):
    folder.states.remove()


def _tries(world, registry, folder):
    crash(folder, *[20] * TRIES)


def _back_and_forth(world, registry, folder):
    registry.promote(2, by="operator", reason="test")
    registry.roll_back(to=1, by="operator", reason="test")


def _moved(world, registry, folder):
    spec = folder.spec()
    elsewhere = {**spec.settings, "state": str(world.settings.state) + "-of-old"}
    folder.spec_path.write_text(spec.model_copy(update={"settings": elsewhere}).model_dump_json())


def _other_version(world, registry, folder):
    registry.promote(2, by="operator", reason="test")


def _settings(world, registry, folder):
    spec = folder.spec()
    spec.settings["round"]["steps"] = 0
    folder.spec_path.write_text(spec.model_dump_json())


def _frames(world, registry, folder):
    spec = folder.spec().model_copy(update={"train_frames": (1, 900)})
    folder.spec_path.write_text(spec.model_dump_json())


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_no_state, "saved no training state"),
        (_tries, "3 starts from step 20 made no progress"),
        (_other_version, "version 1 no longer serves"),
        (_back_and_forth, "version 1 was promoted again after the round began"),
        (_moved, "it was started for the state directory"),
        (_settings, "no longer valid"),
        (_frames, "1 of its frames were evicted from the buffer"),
    ],
)
def test_what_cannot_go_on_is_ended_with_the_reason(world, registry, store, killed, add_version, change, why):
    add_version(1, promote=False)
    change(world, registry, killed)
    assert recover(world.settings, world.buffer, registry) is None
    assert killed.scores().status == "failed" and why in killed.scores().reason
    assert "the daemon ended while the round ran" in killed.verdict().reason
    assert (world.buffer.leases(), killed.states.steps()) == ([], [])


def test_starts_that_get_further_are_no_failed_tries(world, registry, killed):
    crash(killed, 5, 10, 15, 20)
    assert recover(world.settings, world.buffer, registry) == 1


def test_orderly_stops_are_no_failed_tries_and_crashes_between_them_are(context, registry, store, program):
    """A daemon that is restarted again and again while its round is scored; then the round takes two down with it."""
    program(STOPS + SAVES_AND_WAITS)
    stopping = dataclasses.replace(context, on_progress=lambda progress: context.stop.set())
    with pytest.raises(RoundSuspended):
        launch_round(stopping, "manual")
    program(STOPS + "progress(20); time.sleep(600)")
    folder = store.latest()
    for _ in range(TRIES + 1):
        context.stop.clear()
        assert recover(context.settings, context.buffer, registry) == 1
        with pytest.raises(RoundSuspended):
            continue_round(stopping, 1)
    assert folder.record().stage == "suspended"
    assert [(start.step, start.orderly) for start in folder.record().starts] == [(0, True)] + [(20, True)] * (TRIES + 1)
    for _ in range(TRIES):
        assert recover(context.settings, context.buffer, registry) == 1
        folder.remove_scores()  # as `continue_round` does
        crash(folder, 20)
    assert recover(context.settings, context.buffer, registry) is None
    assert "3 starts from step 20 made no progress" in folder.scores().reason


def test_a_crash_while_the_daemon_stops_counts(context, registry, store, program):
    program("save(20); progress(20); signal.pause()")
    stopping = dataclasses.replace(context, on_progress=lambda progress: _die_and_stop(context, store))
    with pytest.raises(RoundSuspended):
        launch_round(stopping, "manual")
    record = store.latest().record()
    assert (record.stage, record.crashes()) == ("training", [0])


def _die_and_stop(context, store):
    """The round is killed by somebody else, and the daemon is stopped before it looks again."""
    (round_process,) = children_of(StateLayout(context.settings.state))
    round_process.kill()
    while round_process.is_running() and round_process.status() != psutil.STATUS_ZOMBIE:
        time.sleep(0.001)
    context.stop.set()


@pytest.mark.parametrize("last", ["scores('stopped', 'SIGTERM')", "None"])
def test_a_round_of_an_operator_who_ended_it_is_over_even_if_adapt_dies_before_the_verdict(
    world, bench, registry, store, tmp_path, last
):
    """The program in the round's place plays the operator: SIGTERM to `mfmd adapt`, SIGKILL before it can judge."""
    config = tmp_path / "mfmd.yaml"
    values = world.settings.model_dump(mode="json", exclude_none=True, exclude={"classes"})
    config.write_text(yaml.safe_dump({**values, "classes": "demo"}))
    world.close()
    code = (
        f"signal.signal(15, lambda *_: ({last}, os.kill(os.getppid(), 9), os._exit(0)))\n"
        "save(20); progress(20); os.kill(os.getppid(), 15); time.sleep(600)"
    )
    adapt = (
        "import sys; from daemon.rounds import runner; from daemon.cli import main\n"
        "runner.launch_command = lambda settings, spec: [sys.executable, '-c', sys.argv[1], str(spec)]\n"
        "sys.exit(main(['adapt', '--config', sys.argv[2]]))"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", adapt, PRELUDE + code, str(config)]
    ended = subprocess.run(command, env=environment, timeout=120, check=False, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    folder = store.latest()
    assert folder.verdict() is None and folder.states.steps() == [20]
    again = bench()
    assert recover(again.settings, again.buffer, registry) is None
    assert (folder.scores().status, folder.verdict().decision) == ("stopped", "inconclusive")
    assert (again.buffer.leases(), folder.states.steps()) == ([], [])
    assert summaries(store, 1, alive=False)[0].result == "stopped"


def test_a_round_that_ended_is_not_started_again(world, registry, killed):
    killed.write_scores(RoundScores(status="failed", reason="non-finite loss", steps=3, seconds=2.0))
    assert recover(world.settings, world.buffer, registry) is None
    assert killed.verdict().decision == "rejected"


def test_a_stopping_daemon_suspends_its_round_and_the_next_one_goes_on(context, registry, store, program):
    program(STOPS + SAVES_AND_WAITS)
    stopping = RoundContext(
        context.settings,
        context.buffer,
        registry,
        context.stop,
        lambda progress: context.stop.set(),
        suspends=True,
    )
    with pytest.raises(RoundSuspended, match="round 1 resumes from step 20"):
        launch_round(stopping, "manual")
    folder = store.latest()
    assert (folder.scores().status, folder.verdict(), context.buffer.leases()) == ("stopped", None, [1])
    assert folder.record().stage == "suspended"
    assert summaries(store, 1, alive=False)[0].result == "suspended"
    program("assert folder.scores() is None; scores('failed', 'went on')")
    context.stop.clear()
    assert recover(context.settings, context.buffer, registry) == 1
    with pytest.raises(RoundFailed, match="went on"):
        continue_round(context, 1)
    assert context.buffer.leases() == []


def test_a_round_that_an_operator_stopped_has_ended(world, registry, store, program):
    """Ctrl-C of `mfmd adapt`: the verdict is inconclusive, and nobody goes on with it."""
    program(STOPS + SAVES_AND_WAITS)
    stop = threading.Event()
    verdict = launch_round(
        RoundContext(world.settings, world.buffer, registry, stop, lambda progress: stop.set()), "manual"
    )
    assert verdict.decision == "inconclusive"
    assert recover(world.settings, world.buffer, registry) is None
    assert (world.buffer.leases(), store.latest().states.steps()) == ([], [])


def test_a_round_stopped_before_its_first_state_has_ended(context, store, program, registry):
    program(STOPS + "progress(1); time.sleep(600)")
    stopping = RoundContext(
        context.settings,
        context.buffer,
        registry,
        context.stop,
        lambda progress: context.stop.set(),
        suspends=True,
    )
    assert launch_round(stopping, "manual").decision == "inconclusive"
    assert context.buffer.leases() == []
